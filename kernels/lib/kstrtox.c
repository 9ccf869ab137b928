/* Numbers and switches from text, by the rules of Linux: what a user wrote on the command line means the
 * same to both.
 */
#include "string.h"
#include "errno.h"

static unsigned int digit_value(char c)
{
	if (c >= '0' && c <= '9')
		return (unsigned int)(c - '0');
	if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f')
		return (unsigned int)((c | 0x20) - 'a' + 10);
	return 16;
}

/* Base 0 becomes what the prefix says; a prefix that belongs to the base is skipped. */
static const char *read_prefix(const char *s, unsigned int *base)
{
	bool x = s[0] == '0' && (s[1] | 0x20) == 'x';

	if (!*base) {
		if (x && digit_value(s[2]) < 16)
			*base = 16;
		else
			*base = s[0] == '0' ? 8 : 10;
	}
	return *base == 16 && x ? s + 2 : s;
}

/* Digits of the base, as many as there are; the value modulo 2^64. */
static const char *read_digits(const char *s, unsigned int base, u64 *value, bool *overflow)
{
	u64 v = 0;

	*overflow = false;
	for (; digit_value(*s) < base; s++) {
		u64 next;

		if (__builtin_mul_overflow(v, (u64)base, &next) ||
		    __builtin_add_overflow(next, (u64)digit_value(*s), &next)) {
			*overflow = true;
			next = v * base + digit_value(*s);
		}
		v = next;
	}
	*value = v;
	return s;
}

u64 memparse(const char *s, const char **end)
{
	unsigned int base = 0;
	bool overflow;
	u64 value;

	s = read_prefix(s, &base);
	s = read_digits(s, base, &value, &overflow);
	for (unsigned int i = 0; i < 6; i++) {
		if (*s && (*s & ~0x20) == "KMGTPE"[i]) {
			value <<= 10 * (i + 1);
			s++;
			break;
		}
	}
	if (end)
		*end = s;
	return value;
}

int kstrtou64(const char *s, unsigned int base, u64 *out)
{
	const char *digits, *end;
	bool overflow;
	u64 value;

	if (*s == '+')
		s++;
	digits = read_prefix(s, &base);
	end = read_digits(digits, base, &value, &overflow);
	if (overflow)
		return -ERANGE;
	if (end == digits)
		return -EINVAL;
	if (*end == '\n')
		end++;
	if (*end)
		return -EINVAL;
	*out = value;
	return 0;
}

int kstrtobool(const char *s, bool *out)
{
	if (!s)
		return -EINVAL;
	switch (s[0]) {
	case 'e': case 'E': case 'y': case 'Y': case 't': case 'T': case '1':
		*out = true;
		return 0;
	case 'd': case 'D': case 'n': case 'N': case 'f': case 'F': case '0':
		*out = false;
		return 0;
	case 'o': case 'O':
		switch (s[1]) {
		case 'n': case 'N':
			*out = true;
			return 0;
		case 'f': case 'F':
			*out = false;
			return 0;
		}
	}
	return -EINVAL;
}
