/* What a new program finds on its stack: arguments, environment, and what the kernel tells it.
 *
 * The strings are copied out of the old program while it is still there, into pages of the kernel, and from there to the
 * new stack.
 *
 * The stack of the new program, from the top:
 *
 *	8 bytes of zero
 *	strings: arguments, environment, file name
 *	16 bytes for AT_RANDOM, "x86_64"
 *	auxiliary vector, environment pointers, argument pointers, their number	<- %rsp, a multiple of 16
 */
#include "exec.h"
#include "cpu.h"
#include "panic.h"
#include "proc_internal.h"
#include "random.h"
#include "string.h"
#include "syscall.h"
#include "task.h"
#include "uaccess.h"
#include "vma.h"

#define STRING_MAX		131072UL	/* of one string, with its NUL */
#define STRINGS_MAX		(6UL << 20)
#define STRINGS_MIN		131072UL	/* always possible, whatever RLIMIT_STACK says */
#define STACK_ROOM		131072UL	/* that the stack has at first; it grows */
#define AT_PAGESZ	6
#define AT_UID		11
#define AT_EUID		12
#define AT_GID		13
#define AT_EGID		14
#define AT_PLATFORM	15
#define AT_HWCAP	16
#define AT_CLKTCK	17
#define AT_SECURE	23
#define AT_RANDOM	25
#define AT_HWCAP2	26
#define AT_EXECFN	31
#define AT_MINSIGSTKSZ	51
#define SIGNAL_STACK_MIN	2048		/* what a signal frame may need */

/* ---- strings ---- */

static int source_get(const struct string_source *from, u64 i, const char **out)
{
	if (!from->list)
		*out = NULL;
	else if (from->kernel)
		*out = from->list[i];
	else
		return get_user(*out, &from->list[i]);
	return 0;
}

static s64 source_count(const struct string_source *from)
{
	const char *s;

	for (u32 n = 0; n < 0x7fffffff; n++) {
		if (source_get(from, n, &s))
			return -EFAULT;
		if (!s)
			return n;
		if (n % 64 == 0 && fatal_signal_pending())
			return -EINTR;
	}
	return -E2BIG;
}

static int strings_page(struct exec_strings *s, u64 at, char **out)
{
	u64 n = at >> PAGE_SHIFT;

	if (n >= s->nr_pages_max)
		return -E2BIG;
	if (!s->page[n])
		s->page[n] = get_free_pages(GFP_KERNEL, 0);
	if (!s->page[n])
		return -ENOMEM;
	*out = s->page[n] + (at & ~PAGE_MASK);
	return 0;
}

static int add_bytes(struct exec_strings *s, const char *from, u64 size)
{
	while (size) {
		u64 n = min(size, PAGE_SIZE - (s->size & ~PAGE_MASK));
		char *to;
		int err = s->size + n > s->limit ? -E2BIG : strings_page(s, s->size, &to);

		if (err)
			return err;
		memcpy(to, from, n);
		s->size += n;
		from += n;
		size -= n;
	}
	return 0;
}

static int add_user_string(struct exec_strings *s, const char *user)
{
	u64 length = 0;

	while (1) {
		u64 room = PAGE_SIZE - (s->size & ~PAGE_MASK);
		ssize_t n;
		char *to;
		int err = s->size >= s->limit ? -E2BIG : strings_page(s, s->size, &to);

		if (err)
			return err;
		n = strncpy_from_user(to, user + length, room);
		if (n < 0)
			return (int)n;
		length += (u64)n;
		s->size += (u64)n;
		if (length >= STRING_MAX || s->size >= s->limit)
			return -E2BIG;
		if ((u64)n < room) {
			s->size++;		/* the NUL */
			return 0;
		}
	}
}

static int add_strings(struct exec_strings *s, const struct string_source *from, u64 count)
{
	const char *string;
	int err = 0;

	for (u64 i = 0; i < count && !err; i++) {
		err = source_get(from, i, &string) ? -EFAULT : 0;
		if (!err && !string)
			return -EFAULT;		/* it was there when we counted */
		if (!err)
			err = from->kernel ? add_bytes(s, string, strlen(string) + 1) : add_user_string(s, string);
		if (!err && fatal_signal_pending())
			err = -EINTR;
	}
	return err;
}

static int init_strings(struct exec_strings *s, s64 argc, s64 envc)
{
	u64 stack = current_process()->rlim[RLIMIT_STACK].cur;
	u64 limit = max(min(stack / 4, STRINGS_MAX), STRINGS_MIN), pointers;

	if (argc < 0 || envc < 0)
		return (int)(argc < 0 ? argc : envc);
	pointers = ((u64)max(argc, (s64)1) + (u64)envc) * sizeof(u64);
	if (limit <= pointers)
		return -E2BIG;
	s->limit = limit - pointers;
	s->nr_pages_max = PFN_UP(s->limit);
	s->page = kzalloc(s->nr_pages_max * sizeof(char *), GFP_KERNEL);
	return s->page ? 0 : -ENOMEM;
}

void exec_free_strings(struct exec_strings *s)
{
	for (u64 i = 0; s->page && i < s->nr_pages_max; i++)
		if (s->page[i])
			free_page(s->page[i]);
	kfree(s->page);
}

/* The arguments of the program: into the kernel, with an empty name if there is none. */
int exec_take_arguments(struct exec *e, const struct string_source *argv, const struct string_source *envp)
{
	struct exec_strings *s = &e->strings;
	s64 argc = source_count(argv), envc = source_count(envp);
	int err = init_strings(s, argc, envc);

	if (err)
		return err;
	s->argc = max((u32)argc, 1U);
	s->envc = (u32)envc;
	err = argc ? add_strings(s, argv, (u64)argc) : add_bytes(s, "", 1);
	if (err)
		return err;
	s->args_end = s->size;
	return add_strings(s, envp, (u64)envc);
}

/* A script's argument strings are: interpreter, argument, name of the script, arguments without the first. */
int exec_wrap_arguments(struct exec *e, const char *interpreter, const char *argument, const char *name)
{
	struct exec_strings *old = &e->strings, new = {
		.limit = old->limit, .nr_pages_max = old->nr_pages_max, .argc = old->argc + 1, .envc = old->envc,
	};
	u64 at = 0;
	int err = 0;

	new.page = kzalloc(new.nr_pages_max * sizeof(char *), GFP_KERNEL);
	if (!new.page)
		return -ENOMEM;
	err = add_bytes(&new, interpreter, strlen(interpreter) + 1);
	if (!err && argument[0]) {
		err = add_bytes(&new, argument, strlen(argument) + 1);
		new.argc++;
	}
	if (!err)
		err = add_bytes(&new, name, strlen(name) + 1);
	while (old->page[at >> PAGE_SHIFT][at & ~PAGE_MASK])	/* behind the first, which the name replaces */
		at++;
	at++;
	new.args_end = new.size + old->args_end - at;
	while (!err && at < old->size) {
		u64 n = min(old->size - at, PAGE_SIZE - (at & ~PAGE_MASK));

		err = add_bytes(&new, old->page[at >> PAGE_SHIFT] + (at & ~PAGE_MASK), n);
		at += n;
	}
	if (err) {
		exec_free_strings(&new);
		return err;
	}
	exec_free_strings(old);
	*old = new;
	return 0;
}

/* ---- the stack ---- */

void exec_aux(struct exec *e, u64 type, u64 value)
{
	BUG_ON(e->nr_auxv == AUXV_MAX);
	e->auxv[e->nr_auxv].type = type;
	e->auxv[e->nr_auxv++].value = value;
}

/* Writes upwards into the new program's memory, through one page of buffer. */
struct stack_writer {
	struct mm *mm;
	u64 at;
	u64 *words;
	u32 used;
	int err;
};

static void flush_words(struct stack_writer *w)
{
	u64 size = w->used * sizeof(u64);

	if (!w->err && size && mm_access(w->mm, w->at, w->words, size, true) != size)
		w->err = -EFAULT;
	w->at += size;
	w->used = 0;
}

static void push_word(struct stack_writer *w, u64 word)
{
	if (w->used == PAGE_SIZE / sizeof(u64))
		flush_words(w);
	w->words[w->used++] = word;
}

/* Pointers to count strings that lie one behind the other from `at` in the strings, which are at `base` in memory. */
static u64 push_pointers(struct stack_writer *w, const struct exec_strings *s, u64 base, u64 at, u32 count)
{
	while (count--) {
		push_word(w, base + at);
		while (s->page[at >> PAGE_SHIFT][at & ~PAGE_MASK])
			at++;
		at++;
	}
	push_word(w, 0);
	return at;
}

static int copy_strings_out(struct mm *mm, const struct exec_strings *s, u64 base)
{
	for (u64 at = 0; at < s->size; at += PAGE_SIZE) {
		u64 n = min(s->size - at, PAGE_SIZE);

		if (mm_access(mm, base + at, s->page[at >> PAGE_SHIFT], n, true) != n)
			return -EFAULT;
	}
	return 0;
}

static void add_identity(struct exec *e, u64 random, u64 platform, u64 execfn)
{
	const struct cred *c = &current_task()->cred;
	u32 id[4];

	cpuid(1, 0, id);
	exec_aux(e, AT_HWCAP, id[3]);
	exec_aux(e, AT_HWCAP2, 0);
	exec_aux(e, AT_MINSIGSTKSZ, SIGNAL_STACK_MIN);
	exec_aux(e, AT_PAGESZ, PAGE_SIZE);
	exec_aux(e, AT_CLKTCK, 100);
	exec_aux(e, AT_UID, c->uid);
	exec_aux(e, AT_EUID, c->euid);
	exec_aux(e, AT_GID, c->gid);
	exec_aux(e, AT_EGID, c->egid);
	exec_aux(e, AT_SECURE, 0);
	exec_aux(e, AT_RANDOM, random);
	exec_aux(e, AT_EXECFN, execfn);
	exec_aux(e, AT_PLATFORM, platform);
}

struct stack_extra {
	u8 random[16];
	char platform[8];
};

/* Fills the stack and returns where %rsp begins. */
s64 exec_make_stack(struct exec *e)
{
	struct exec_strings *s = &e->strings;
	u64 name_size = strlen(e->filename) + 1, top = USER_END - 8;
	u64 execfn = top - name_size, base = execfn - s->size;
	u64 extra_at = ALIGN_DOWN(base - sizeof(struct stack_extra), 16), sp, size;
	struct stack_writer w = { .mm = e->mm };
	struct stack_extra extra = { .platform = "x86_64" };
	s64 at;
	u64 env;
	int err;

	add_identity(e, extra_at, extra_at + offsetof(struct stack_extra, platform), execfn);
	sp = extra_at - (1 + s->argc + 1 + s->envc + 1 + 2 * (u64)(e->nr_auxv + 1)) * sizeof(u64);
	sp = ALIGN_DOWN(sp, 16);
	size = PAGE_ALIGN(USER_END - sp) + STACK_ROOM;
	at = mm_map(e->mm, USER_END - size, size, PROT_READ | PROT_WRITE | (e->executable_stack ? PROT_EXEC : 0),
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_GROWSDOWN, NULL, 0);
	if (at < 0)
		return at;
	get_random_bytes(extra.random, sizeof(extra.random));
	err = copy_strings_out(e->mm, s, base);
	if (!err && (mm_access(e->mm, execfn, (void *)e->filename, name_size, true) != name_size ||
		     mm_access(e->mm, extra_at, &extra, sizeof(extra), true) != sizeof(extra)))
		err = -EFAULT;
	if (err)
		return err;

	w.at = sp;
	w.words = get_free_pages(GFP_KERNEL, 0);
	if (!w.words)
		return -ENOMEM;
	push_word(&w, s->argc);
	env = push_pointers(&w, s, base, 0, s->argc);
	push_pointers(&w, s, base, env, s->envc);
	for (u32 i = 0; i < e->nr_auxv; i++) {
		push_word(&w, e->auxv[i].type);
		push_word(&w, e->auxv[i].value);
	}
	push_word(&w, 0);
	push_word(&w, 0);
	flush_words(&w);
	free_page(w.words);
	e->mm->stack_top = USER_END;
	e->mm->arg_start = base;
	e->mm->arg_end = e->mm->env_start = base + s->args_end;
	e->mm->env_end = base + s->size;
	return w.err ? w.err : (s64)sp;
}
