/* ELF programs for x86-64: static, static-PIE, and dynamic ones with the interpreter that they name.
 *
 * The file is a claim: every number in it is held against what is possible before it is used, and what is mapped is only
 * ever address space of the new program. A file that asks for nonsense gets a program that cannot start, or one that
 * faults; the kernel loses nothing (System V ABI, AMD64 supplement).
 *
 * There is no randomness: PIE goes to the same place each time, aligned to what its segments ask for.
 */
#include "cpu.h"
#include "errno.h"
#include "exec.h"
#include "page.h"
#include "string.h"
#include "uaccess.h"
#include "vfs.h"
#include "vma.h"

#define ET_EXEC		2
#define ET_DYN		3
#define EM_X86_64	62
#define PT_LOAD		1
#define PT_INTERP	3
#define PT_GNU_STACK	0x6474e551
#define PF_X		1
#define PF_W		2
#define PF_R		4
#define PHDRS_SIZE_MAX	65536
#define ELIBBAD		80

#define PIE_BASE	0x555555554000UL	/* two thirds of the address space, Linux without randomization */

#define AT_PHDR		3
#define AT_PHENT	4
#define AT_PHNUM	5
#define AT_BASE		7
#define AT_FLAGS	8
#define AT_ENTRY	9

struct elf_header {
	u8 ident[16];
	u16 type, machine;
	u32 version;
	u64 entry, phoff, shoff;
	u32 flags;
	u16 ehsize, phentsize, phnum, shentsize, shnum, shstrndx;
};
static_assert(sizeof(struct elf_header) == 64, "Elf64_Ehdr");

struct segment {
	u32 type, flags;
	u64 offset, vaddr, paddr, filesz, memsz, align;
};
static_assert(sizeof(struct segment) == 56, "Elf64_Phdr");

struct elf {
	struct file *file;
	struct elf_header header;
	struct segment *segments;
};

/* The class and byte order in it are not looked at, as in Linux: the machine says both. */
static bool is_elf(const struct elf_header *h)
{
	return !memcmp(h->ident, "\177ELF", 4) && (h->type == ET_EXEC || h->type == ET_DYN) &&
	       h->machine == EM_X86_64;
}

/* -ENOEXEC for all that is wrong with them */
static int read_segments(struct elf *elf)
{
	u64 size = elf->header.phnum * sizeof(struct segment);

	if (elf->header.phentsize != sizeof(struct segment) || !size || size > PHDRS_SIZE_MAX)
		return -ENOEXEC;
	elf->segments = kmalloc(size, GFP_KERNEL);
	if (!elf->segments)
		return -ENOMEM;
	return exec_read(elf->file, elf->segments, size, elf->header.phoff) ? -ENOEXEC : 0;
}

/* From the first to the last byte of the segments in memory; 0 if there are none or they are impossible. */
static u64 total_size(const struct elf *elf, u64 *first)
{
	u64 low = ~0UL, high = 0;

	for (unsigned int i = 0; i < elf->header.phnum; i++) {
		const struct segment *s = &elf->segments[i];

		if (s->type != PT_LOAD)
			continue;
		if (s->memsz > USER_END || s->vaddr > USER_END - s->memsz || s->filesz > s->memsz)
			return 0;
		low = min(low, s->vaddr & PAGE_MASK);
		high = max(high, s->vaddr + s->memsz);
	}
	*first = low;
	return high > low ? PAGE_ALIGN(high - low) : 0;
}

static u64 largest_alignment(const struct elf *elf)
{
	u64 align = PAGE_SIZE;

	for (unsigned int i = 0; i < elf->header.phnum; i++) {
		u64 a = elf->segments[i].align;

		if (elf->segments[i].type == PT_LOAD && a && !(a & (a - 1)) && a < GIB)
			align = max(align, a);
	}
	return align;
}

static u32 protection(const struct segment *s)
{
	return (s->flags & PF_R ? PROT_READ : 0) | (s->flags & PF_W ? PROT_WRITE : 0) | (s->flags & PF_X ? PROT_EXEC : 0);
}

static int map_at(struct mm *mm, u64 start, u64 size, u32 prot, struct file *f, u64 offset)
{
	s64 at = mm_map(mm, start, size, prot, MAP_PRIVATE | MAP_FIXED | (f ? 0 : MAP_ANONYMOUS), f, offset);

	return at < 0 ? (int)at : 0;
}

/* What lies behind the contents up to the end of their page came from the file, and has to be zero. */
static int zero_rest_of_page(struct mm *mm, u64 at)
{
	static const u8 zeros[PAGE_SIZE];
	u64 size = PAGE_ALIGN(at) - at;

	return mm_access(mm, at, (void *)zeros, size, true) == size ? 0 : -EFAULT;
}

static int map_segment(struct mm *mm, const struct elf *elf, const struct segment *s, u64 bias)
{
	u64 start = (s->vaddr + bias) & PAGE_MASK, in_page = s->vaddr & ~PAGE_MASK;
	u64 file_end = s->vaddr + bias + s->filesz, end = PAGE_ALIGN(s->vaddr + bias + s->memsz);
	u64 mapped_end = s->filesz ? PAGE_ALIGN(file_end) : start;
	int err;

	if (s->filesz) {
		if (s->offset > (u64)1 << 62 || s->offset < in_page || ((s->offset - in_page) & ~PAGE_MASK))
			return -EINVAL;
		err = map_at(mm, start, mapped_end - start, protection(s), elf->file, s->offset - in_page);
		if (err)
			return err;
		if (s->memsz > s->filesz && file_end != mapped_end && s->flags & PF_W) {
			err = zero_rest_of_page(mm, file_end);
			if (err)
				return err;
		}
	}
	return end > mapped_end ? map_at(mm, mapped_end, end - mapped_end, protection(s), NULL, 0) : 0;
}

static int map_segments(struct mm *mm, const struct elf *elf, u64 bias, u64 *end)
{
	*end = 0;
	for (unsigned int i = 0; i < elf->header.phnum; i++) {
		const struct segment *s = &elf->segments[i];
		int err;

		if (s->type != PT_LOAD || !s->memsz)
			continue;
		err = map_segment(mm, elf, s, bias);
		if (err)
			return err;
		*end = max(*end, PAGE_ALIGN(s->vaddr + bias + s->memsz));
	}
	return 0;
}

/* ---- the interpreter ---- */

static const struct segment *find_segment(const struct elf *elf, u32 type)
{
	for (unsigned int i = 0; i < elf->header.phnum; i++)
		if (elf->segments[i].type == type)
			return &elf->segments[i];
	return NULL;
}

/* Opens it and reads its headers. interp->file is NULL if the program needs none. */
static int read_interpreter(const struct elf *elf, struct elf *interp)
{
	const struct segment *s = find_segment(elf, PT_INTERP);
	char *name;
	int err;

	if (!s)
		return 0;
	if (s->filesz > PATH_MAX || s->filesz < 2)
		return -ENOEXEC;
	name = kmalloc(s->filesz, GFP_KERNEL);
	if (!name)
		return -ENOMEM;
	err = exec_read(elf->file, name, s->filesz, s->offset);
	if (!err && name[s->filesz - 1])
		err = -ENOEXEC;
	if (!err) {
		interp->file = open_exec(AT_FDCWD, name, LOOKUP_FOLLOW);
		if (IS_ERR(interp->file)) {
			err = (int)PTR_ERR(interp->file);
			interp->file = NULL;
		}
	}
	kfree(name);
	if (err)
		return err;
	err = exec_read(interp->file, &interp->header, sizeof(interp->header), 0);
	if (err)
		return err;
	if (!is_elf(&interp->header))
		return -ELIBBAD;
	err = read_segments(interp);
	return err == -ENOEXEC ? -ELIBBAD : err;
}

/* A free stretch that is large enough, then the segments into it. */
static int map_interpreter(struct mm *mm, const struct elf *interp, u64 *bias)
{
	u64 first = 0, size = total_size(interp, &first), align = largest_alignment(interp), end, place;
	s64 at;

	if (!size || size > USER_END - align)
		return -EINVAL;
	if (interp->header.type == ET_EXEC) {
		*bias = 0;
		return map_segments(mm, interp, 0, &end);
	}
	at = mm_map(mm, 0, size + align, 0, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, NULL, 0);
	if (at < 0)
		return (int)at;
	mm_unmap(mm, (u64)at, size + align);
	place = ALIGN_UP((u64)at, align);
	*bias = place - first;
	return map_segments(mm, interp, *bias, &end);
}

/* ---- the program ---- */

static int place_program(const struct elf *elf, u64 *bias)
{
	u64 first = 0, size = total_size(elf, &first), base = ALIGN_DOWN(PIE_BASE, largest_alignment(elf));

	*bias = 0;
	if (!size)
		return -EINVAL;
	if (elf->header.type == ET_EXEC)
		return 0;
	if (size > USER_END - base)
		return -ENOMEM;
	*bias = base - first;
	return 0;
}

/* Where the program headers are in its memory, 0 if they are not. */
static u64 headers_address(const struct elf *elf, u64 bias)
{
	u64 at = elf->header.phoff;

	for (unsigned int i = 0; i < elf->header.phnum; i++) {
		const struct segment *s = &elf->segments[i];

		if (s->type == PT_LOAD && s->offset <= at && at - s->offset < s->filesz)
			return at - s->offset + s->vaddr + bias;
	}
	return 0;
}

static int load(struct exec *e, const struct elf *elf, const struct elf *interp)
{
	const struct segment *stack = find_segment(elf, PT_GNU_STACK);
	u64 bias = 0, interp_bias = 0, end = 0;
	int err;

	e->executable_stack = stack && stack->flags & PF_X;
	e->mm = mm_create();
	if (!e->mm)
		return -ENOMEM;
	e->no_return = true;
	err = place_program(elf, &bias);
	if (!err)
		err = map_segments(e->mm, elf, bias, &end);
	if (err)
		return err;
	e->mm->start_brk = e->mm->brk = end;
	e->entry = elf->header.entry + bias;
	if (interp->file) {
		err = map_interpreter(e->mm, interp, &interp_bias);
		if (err)
			return err;
		e->entry = interp->header.entry + interp_bias;
	}
	exec_aux(e, AT_PHDR, headers_address(elf, bias));
	exec_aux(e, AT_PHENT, sizeof(struct segment));
	exec_aux(e, AT_PHNUM, elf->header.phnum);
	exec_aux(e, AT_BASE, interp->file ? interp_bias : 0);
	exec_aux(e, AT_FLAGS, 0);
	exec_aux(e, AT_ENTRY, elf->header.entry + bias);
	return 0;
}

int load_elf(struct exec *e)
{
	struct elf elf = { .file = e->file }, interp = { 0 };
	int err = -ENOEXEC;

	memcpy(&elf.header, e->head, sizeof(elf.header));
	if (e->head_size < sizeof(elf.header) || !is_elf(&elf.header))
		return err;
	err = read_segments(&elf);
	if (!err)
		err = read_interpreter(&elf, &interp);
	if (!err)
		err = load(e, &elf, &interp);
	if (interp.file)
		fput(interp.file);
	kfree(interp.segments);
	kfree(elf.segments);
	return err;
}
