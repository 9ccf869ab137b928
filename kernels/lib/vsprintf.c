/* Formatted text: the C library's conversions for integers, characters, strings and pointers.
 *
 * A pointer is "0x" and sixteen digits, so that columns stay; symbols are the host's business. Extensions,
 * told by a letter behind %p: S a code address, e the error number in an error pointer, in decimal.
 */
#include "printk.h"
#include "string.h"
#include "errno.h"

struct output {
	char *buf;
	size_t size;			/* of buf */
	size_t length;			/* of the whole text, kept or not */
};

struct spec {
	bool left, plus, space, alternate, zero;
	int width;
	int precision;			/* -1: not given */
};

static void put(struct output *out, char c)
{
	if (out->length < out->size)
		out->buf[out->length] = c;
	out->length++;
}

static void put_n(struct output *out, char c, int n)
{
	while (n-- > 0)
		put(out, c);
}

static void put_text(struct output *out, const struct spec *spec, const char *s, size_t n)
{
	int pad = spec->width > (int)n ? spec->width - (int)n : 0;

	if (!spec->left)
		put_n(out, ' ', pad);
	for (size_t i = 0; i < n; i++)
		put(out, s[i]);
	if (spec->left)
		put_n(out, ' ', pad);
}

static void put_string(struct output *out, const struct spec *spec, const char *s)
{
	if (!s)
		s = "(null)";
	put_text(out, spec, s, spec->precision < 0 ? strlen(s) : strnlen(s, (size_t)spec->precision));
}

static void put_number(struct output *out, const struct spec *spec, u64 value, unsigned int base, bool upper,
		       const char *prefix)
{
	const char *alphabet = upper ? "0123456789ABCDEF" : "0123456789abcdef";
	char digits[22];		/* 2^64 in octal */
	int n = 0, zeros, pad;

	while (value) {
		digits[n++] = alphabet[value % base];
		value /= base;
	}
	/* No precision means one digit at least; an explicit 0 prints nothing for 0. */
	zeros = (spec->precision < 0 ? 1 : spec->precision) - n;
	if (base == 8 && spec->alternate && zeros <= 0 && (n == 0 || digits[n - 1] != '0'))
		zeros = 1;
	pad = spec->width - (int)strlen(prefix) - n - max(zeros, 0);
	if (spec->zero && !spec->left && spec->precision < 0 && pad > 0) {
		zeros = max(zeros, 0) + pad;
		pad = 0;
	}

	if (!spec->left)
		put_n(out, ' ', pad);
	while (*prefix)
		put(out, *prefix++);
	put_n(out, '0', zeros);
	while (n)
		put(out, digits[--n]);
	if (spec->left)
		put_n(out, ' ', pad);
}

static void put_signed(struct output *out, const struct spec *spec, s64 value)
{
	const char *sign = value < 0 ? "-" : spec->plus ? "+" : spec->space ? " " : "";

	put_number(out, spec, value < 0 ? 0 - (u64)value : (u64)value, 10, false, sign);
}

static const char *put_pointer(struct output *out, struct spec *spec, const char *fmt, const void *p)
{
	if (*fmt == 'e') {
		put_signed(out, spec, PTR_ERR(p));
		return fmt + 1;
	}
	spec->precision = 16;
	put_number(out, spec, (u64)p, 16, false, "0x");
	return *fmt == 'S' ? fmt + 1 : fmt;
}

static const char *read_number(const char *s, int *out)
{
	int n = 0;

	for (; *s >= '0' && *s <= '9'; s++)
		n = n > 99999 ? n : n * 10 + (*s - '0');	/* bounded: nobody means more */
	*out = n;
	return s;
}

/* Bytes of an integer argument by its length modifiers; default int. */
static const char *read_length(const char *s, unsigned int *bytes)
{
	*bytes = 4;
	switch (*s) {
	case 'h':
		*bytes = s[1] == 'h' ? 1 : 2;
		return s[1] == 'h' ? s + 2 : s + 1;
	case 'l':
		*bytes = 8;
		return s[1] == 'l' ? s + 2 : s + 1;
	case 'j': case 't': case 'z':
		*bytes = 8;
		return s + 1;
	}
	return s;
}

static const char *read_flags(const char *s, struct spec *spec)
{
	for (;; s++) {
		switch (*s) {
		case '-': spec->left = true; break;
		case '+': spec->plus = true; break;
		case ' ': spec->space = true; break;
		case '#': spec->alternate = true; break;
		case '0': spec->zero = true; break;
		default: return s;
		}
	}
}

static u64 truncate_unsigned(u64 v, unsigned int bytes)
{
	return bytes == 8 ? v : v & ((1UL << bytes * 8) - 1);
}

static s64 truncate_signed(u64 v, unsigned int bytes)
{
	return (s64)(v << (64 - bytes * 8)) >> (64 - bytes * 8);
}

int vsnprintf(char *buf, size_t size, const char *fmt, va_list args)
{
	struct output out = { .buf = buf, .size = size };

	while (*fmt) {
		struct spec spec = { .precision = -1 };
		const char *start = fmt;
		unsigned int bytes;
		u64 v;
		char c;

		if (*fmt++ != '%') {
			put(&out, *start);
			continue;
		}
		fmt = read_flags(fmt, &spec);
		if (*fmt == '*') {
			spec.width = va_arg(args, int);
			if (spec.width < 0) {
				spec.left = true;
				spec.width = -spec.width;
			}
			fmt++;
		} else {
			fmt = read_number(fmt, &spec.width);
		}
		if (*fmt == '.') {
			fmt++;
			if (*fmt == '*') {
				spec.precision = max(va_arg(args, int), -1);
				fmt++;
			} else {
				fmt = read_number(fmt, &spec.precision);
			}
		}
		fmt = read_length(fmt, &bytes);

		switch (c = *fmt++) {
		case 'd': case 'i':
			v = bytes == 8 ? va_arg(args, u64) : va_arg(args, u32);
			put_signed(&out, &spec, truncate_signed(v, bytes));
			break;
		case 'u': case 'x': case 'X': case 'o':
			v = bytes == 8 ? va_arg(args, u64) : va_arg(args, u32);
			v = truncate_unsigned(v, bytes);
			put_number(&out, &spec, v, c == 'u' ? 10 : c == 'o' ? 8 : 16, c == 'X',
				   !spec.alternate || !v || c == 'u' || c == 'o' ? "" : c == 'X' ? "0X" : "0x");
			break;
		case 'c':
			c = (char)va_arg(args, int);
			put_text(&out, &spec, &c, 1);
			break;
		case 's':
			put_string(&out, &spec, va_arg(args, const char *));
			break;
		case 'p':
			fmt = put_pointer(&out, &spec, fmt, va_arg(args, const void *));
			break;
		case '%':
			put(&out, '%');
			break;
		default:	/* unknown: shown as it is, so that it is seen; the arguments are out of step */
			fmt = start + 1;
			put(&out, '%');
			break;
		}
	}
	if (size)
		buf[min(out.length, size - 1)] = '\0';
	return (int)out.length;
}

int snprintf(char *buf, size_t size, const char *fmt, ...)
{
	va_list args;
	int n;

	va_start(args, fmt);
	n = vsnprintf(buf, size, fmt, args);
	va_end(args);
	return n;
}

int scnprintf(char *buf, size_t size, const char *fmt, ...)
{
	va_list args;
	int n;

	va_start(args, fmt);
	n = vsnprintf(buf, size, fmt, args);
	va_end(args);
	return size ? min(n, (int)size - 1) : 0;
}
