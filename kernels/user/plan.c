/*
 * plan.c - parse /luemu/plan (the format is described in plan.h)
 *
 * Knows nothing of processes or devices, so that the same code is tested on the host.
 */
#include "plan.h"

#include <stdbool.h>
#include <string.h>

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

/* Undo the escapes of one word in place. Returns what is wrong, or NULL. */
static const char *unescape(char *word)
{
	char *out = word;

	for (char *in = word; *in != '\0'; in++) {
		if (*in != '%') {
			if (*in < '!' || *in > '~')
				return "a byte that has to be escaped";
			*out++ = *in;
			continue;
		}
		if (in[1] == '-') {	/* stands for nothing, so that a word can be empty */
			in++;
			continue;
		}
		int high = hex_digit(in[1]);
		int low = high < 0 ? -1 : hex_digit(in[2]);
		if (low < 0)
			return "'%' without two upper-case hex digits";
		if (high == 0 && low == 0)
			return "a NUL byte in a word";
		*out++ = (char)(high << 4 | low);
		in += 2;
	}
	*out = '\0';
	return NULL;
}

static bool parse_number(const char *word, unsigned int max, unsigned int *value)
{
	unsigned int n = 0;

	if (*word == '\0')
		return false;
	for (; *word != '\0'; word++) {
		if (*word < '0' || *word > '9')
			return false;
		n = n * 10 + (unsigned int)(*word - '0');
		if (n > max)
			return false;
	}
	*value = n;
	return true;
}

/* Split one line into words that end up, with a NULL after them, in the plan's pool. */
static const char *split(struct plan *plan, char *line, char ***words, size_t *count)
{
	*words = plan->words + plan->words_count;
	*count = 0;
	for (char *word = line; word != NULL;) {
		char *space = strchr(word, ' ');

		if (space != NULL)
			*space = '\0';
		if (*word == '\0')
			return "an empty word (written \"%-\"), or more than one space";
		if (plan->words_count + 2 > PLAN_WORDS_MAX)
			return "too many words";
		const char *wrong = unescape(word);
		if (wrong != NULL)
			return wrong;
		plan->words[plan->words_count++] = word;
		(*count)++;
		word = space != NULL ? space + 1 : NULL;
	}
	plan->words[plan->words_count++] = NULL;
	return NULL;
}

static const char *add_program(struct plan *plan, enum plan_when when, char **argv)
{
	if (argv[0] == NULL || argv[0][0] == '\0')
		return "no program";
	if (plan->programs_count == PLAN_PROGRAMS_MAX)
		return "too many programs";
	plan->programs[plan->programs_count++] = (struct plan_program){ .when = when, .argv = argv };
	return NULL;
}

static const char *parse_line(struct plan *plan, char *line, bool *updates_seen)
{
	char **words;
	size_t count;
	const char *wrong = split(plan, line, &words, &count);

	if (wrong != NULL)
		return wrong;
	if (strcmp(words[0], "updates") == 0) {
		if (*updates_seen)
			return "\"updates\" twice";
		*updates_seen = true;
		if (count != 2 || !parse_number(words[1], PLAN_UPDATES_MAX, &plan->updates))
			return "\"updates\" takes one number";
		return NULL;
	}
	if (strcmp(words[0], "before") == 0)
		return add_program(plan, PLAN_BEFORE, words + 1);
	if (strcmp(words[0], "after") == 0)
		return add_program(plan, PLAN_AFTER, words + 1);
	if (strcmp(words[0], "next") == 0) {
		if (count != 4 || words[1][0] == '\0')
			return "\"next\" takes a kernel, an initrd or \"-\", and a command line";
		if (plan->next_count == PLAN_NEXT_MAX)
			return "too many kernels";
		plan->next[plan->next_count++] = (struct plan_next){
			.kernel = words[1],
			.initrd = strcmp(words[2], "-") == 0 ? NULL : words[2],
			.cmdline = words[3],
		};
		return NULL;
	}
	if (strcmp(words[0], "interactive") == 0) {
		if (plan->terminal != NULL)
			return "\"interactive\" twice";
		if (count < 3 || words[1][0] == '\0' || words[2][0] == '\0')
			return "\"interactive\" takes a terminal and a program";
		plan->terminal = words[1];
		plan->shell = words + 2;
		return NULL;
	}
	return "unknown order";
}

int plan_parse(char *text, size_t length, struct plan *plan, struct plan_error *error)
{
	static const char magic[] = "luemu-plan 1";
	bool updates_seen = false;
	char *line = text;

	memset(plan, 0, sizeof(*plan));
	*error = (struct plan_error){ .line = 1 };
	if (length > PLAN_BYTES_MAX) {
		error->message = "the plan is too long";
		return -1;
	}
	if (memchr(text, '\0', length) != NULL) {
		error->message = "a NUL byte in the plan";
		return -1;
	}
	text[length] = '\0';
	while (*line != '\0') {
		char *end = strchr(line, '\n');

		if (end == NULL) {
			error->message = "the last line has no end";
			return -1;
		}
		*end = '\0';
		if (error->line == 1) {
			if (strcmp(line, magic) != 0) {
				error->message = "not a plan, or one of another version";
				return -1;
			}
		} else {
			error->message = parse_line(plan, line, &updates_seen);
			if (error->message != NULL)
				return -1;
		}
		line = end + 1;
		error->line++;
	}
	if (error->line == 1)
		error->message = "the plan is empty";
	else if (plan->updates > 0 && plan->next_count == 0)
		error->message = "updates without a next kernel";
	return error->message == NULL ? 0 : -1;
}

const struct plan_next *plan_next_for(const struct plan *plan, unsigned int generation)
{
	if (plan->next_count == 0 || generation == 0)
		return NULL;
	return &plan->next[(generation < plan->next_count ? generation : plan->next_count) - 1];
}
