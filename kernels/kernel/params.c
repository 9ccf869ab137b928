/* The command line, by the rules of Linux: words at white space; quotes hold a word together and are
 * dropped where a word or a value begins with one; '-' and '_' are the same in names; "--" ends the
 * kernel's part.
 *
 * What nobody has asked for is passed over silently: it may be for a later release, or for a program.
 */
#include "errno.h"
#include "init.h"
#include "printk.h"
#include "string.h"

/* Delimits section .param (link.ld). */
extern const struct kernel_param __param_start[], __param_end[];

/* A word of the command line, as parts of it. */
struct word {
	const char *name;
	size_t name_length;
	const char *value;		/* NULL without '=' */
	size_t value_length;
};

static bool is_space(char c)
{
	return c == ' ' || (c >= '\t' && c <= '\r');
}

/* Reads the word at *cursor and moves behind it; false at the end. */
static bool next_word(const char **cursor, struct word *word)
{
	const char *s = *cursor, *end, *equals = NULL;
	bool quoted, in_quotes = false;

	while (is_space(*s))
		s++;
	if (!*s)
		return false;

	quoted = *s == '"';
	if (quoted)
		s++;
	in_quotes = quoted;
	for (end = s; *end && (in_quotes || !is_space(*end)); end++) {
		if (*end == '=' && !equals)
			equals = end;
		if (*end == '"')
			in_quotes = !in_quotes;
	}
	*cursor = end;

	word->name = s;
	word->name_length = (size_t)((equals ? equals : end) - s);
	word->value = NULL;
	word->value_length = 0;
	if (equals) {
		bool value_quoted = equals + 1 < end && equals[1] == '"';

		word->value = equals + 1 + value_quoted;
		if ((quoted || value_quoted) && end > word->value && end[-1] == '"')
			end--;
		word->value_length = (size_t)(end - word->value);
	} else if (quoted && word->name_length && end[-1] == '"') {
		word->name_length--;
	}
	return true;
}

static bool ends_options(const struct word *word)
{
	return !word->value && word->name_length == 2 && !memcmp(word->name, "--", 2);
}

static bool is_name(const struct word *word, const char *name)
{
	for (size_t i = 0; i < word->name_length; i++) {
		char a = word->name[i] == '-' ? '_' : word->name[i];
		char b = name[i] == '-' ? '_' : name[i];

		if (a != b)		/* also at the end of name */
			return false;
	}
	return !name[word->name_length];
}

/* Values as texts with a NUL, which handlers may keep. Both passes over the longest command line fit. */
static char texts[2 * COMMAND_LINE_SIZE];
static size_t texts_used;

static const char *keep(const char *s, size_t length)
{
	char *text = texts + texts_used;

	if (length + 1 > sizeof(texts) - texts_used)
		return NULL;
	memcpy(text, s, length);
	text[length] = '\0';
	texts_used += length + 1;
	return text;
}

static void call_handler(const struct kernel_param *param, const struct word *word)
{
	const char *value = word->value_length ? keep(word->value, word->value_length) : "";
	int err = value ? param->handler(value) : -ENOSPC;

	if (!err)
		return;
	if (param->early)
		pr_warn("Malformed early option '%s'\n", param->name);
	else
		pr_err("Booting kernel: `%s' invalid for parameter `%s'\n", value ? value : "", param->name);
}

static void parse(bool early)
{
	const char *cursor = boot_command_line;
	struct word word;

	while (next_word(&cursor, &word) && !ends_options(&word)) {
		for (const struct kernel_param *p = __param_start; p < __param_end; p++) {
			if (p->early == early && is_name(&word, p->name))
				call_handler(p, &word);
		}
	}
}

void parse_early_params(void)
{
	texts_used = 0;
	parse(true);
}

void parse_params(void)
{
	parse(false);
}

bool cmdline_find(const char *name, char *buf, size_t size)
{
	const char *cursor = boot_command_line;
	struct word word;
	bool found = false;

	while (next_word(&cursor, &word) && !ends_options(&word)) {
		size_t n = min(word.value_length, size - 1);

		if (!is_name(&word, name))
			continue;
		if (n)
			memcpy(buf, word.value, n);
		buf[n] = '\0';
		found = true;
	}
	return found;
}
