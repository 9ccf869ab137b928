/* System calls on a program's memory. Semantics and errors: Linux's manual pages of the same names. */
#include "pagecache.h"
#include "syscall.h"
#include "task.h"
#include "uaccess.h"
#include "vfs.h"
#include "vma.h"

#define MREMAP_MAYMOVE	1
#define MREMAP_FIXED	2

#define MADV_NORMAL	0
#define MADV_RANDOM	1
#define MADV_SEQUENTIAL	2
#define MADV_WILLNEED	3
#define MADV_DONTNEED	4
#define MADV_FREE	8
#define MADV_REMOVE	9
#define MADV_DONTFORK	10
#define MADV_DOFORK	11
#define MADV_MERGEABLE	12
#define MADV_UNMERGEABLE 13
#define MADV_HUGEPAGE	14
#define MADV_NOHUGEPAGE	15
#define MADV_DONTDUMP	16
#define MADV_DODUMP	17
#define MADV_COLD	20
#define MADV_PAGEOUT	21
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23

static struct mm *current_mm(void) { return current_task()->mm; }

/* Faults in what can be; errors do not matter to mmap. */
static int populate(struct mm *mm, u64 start, u64 end, bool write)
{
	for (u64 addr = start; addr < end; addr += PAGE_SIZE) {
		int err = mm_fault(mm, addr, write, false);

		if (err)
			return err;
	}
	return 0;
}

SYSCALL_DEFINE6(mmap, 9, u64, addr, u64, size, u32, prot, u32, flags, int, fd, u64, off)
{
	struct file *file = NULL;
	s64 ret;

	if (!IS_ALIGNED(off, PAGE_SIZE))
		return -EINVAL;
	if (!(flags & MAP_ANONYMOUS)) {
		file = fget(fd);
		if (!file)
			return -EBADF;
	}
	ret = mm_map(current_mm(), addr, size, prot, flags, file, off);
	if (file)
		fput(file);
	if (ret > 0 && flags & MAP_POPULATE)
		populate(current_mm(), (u64)ret, (u64)ret + PAGE_ALIGN(size), prot & PROT_WRITE);
	return ret;
}

SYSCALL_DEFINE2(munmap, 11, u64, addr, u64, size)
{
	return mm_unmap(current_mm(), addr, size);
}

static bool bad_range(u64 addr, u64 size)
{
	return PAGE_ALIGN(size) < size || addr > USER_END || PAGE_ALIGN(size) > USER_END - addr;
}

SYSCALL_DEFINE3(mprotect, 10, u64, addr, u64, size, u32, prot)
{
	if (!IS_ALIGNED(addr, PAGE_SIZE) || prot & ~(u32)(PROT_READ | PROT_WRITE | PROT_EXEC))
		return -EINVAL;
	if (!size)
		return 0;
	if (bad_range(addr, size))
		return -ENOMEM;
	return mm_protect(current_mm(), addr, PAGE_ALIGN(size), prot);
}

/* Returns the break as it is afterwards, as the system call does: the old one says that it failed. */
SYSCALL_DEFINE1(brk, 12, u64, brk)
{
	struct mm *mm = current_mm();
	u64 old = PAGE_ALIGN(mm->brk), new = PAGE_ALIGN(brk);

	if (brk < mm->start_brk || brk >= USER_END)
		return (s64)mm->brk;
	if (new > old && mm_map(mm, old, new - old, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, NULL, 0) < 0)
		return (s64)mm->brk;
	if (new < old && mm_unmap(mm, new, old - new))
		return (s64)mm->brk;
	mm->brk = brk;
	return (s64)brk;
}

/* What the area at addr is, copied out: it may change as soon as the lock is released. */
static bool area_at(struct mm *mm, u64 addr, struct vma *out)
{
	struct vma *v;

	mutex_lock(&mm->lock);
	v = mm_find(mm, addr);
	if (v) {
		*out = *v;
		if (out->file)
			file_get(out->file);
	}
	mutex_unlock(&mm->lock);
	return v;
}

SYSCALL_DEFINE5(mremap, 25, u64, old, u64, old_size, u64, new_size, u32, flags, u64, new)
{
	struct mm *mm = current_mm();
	struct vma v;
	s64 at, ret;

	if (flags & ~(u32)(MREMAP_MAYMOVE | MREMAP_FIXED) || !IS_ALIGNED(old, PAGE_SIZE) || !PAGE_ALIGN(new_size) ||
	    (flags & MREMAP_FIXED && (!(flags & MREMAP_MAYMOVE) || !IS_ALIGNED(new, PAGE_SIZE))))
		return -EINVAL;
	old_size = PAGE_ALIGN(old_size);
	new_size = PAGE_ALIGN(new_size);
	if (!old_size || bad_range(old, old_size) || new_size > USER_END)
		return -EINVAL;
	if (flags & MREMAP_FIXED && new < old + old_size && old < new + new_size)
		return -EINVAL;
	if (!area_at(mm, old, &v))
		return -EFAULT;
	ret = -EFAULT;
	if (old + old_size > v.end)
		goto out;
	if (!(flags & MREMAP_FIXED) && new_size <= old_size) {
		ret = new_size < old_size ? mm_unmap(mm, old + new_size, old_size - new_size) : 0;
		ret = ret ? ret : (s64)old;
		goto out;
	}
	if (!(flags & MREMAP_FIXED) && old + old_size == v.end && mm_extend(mm, v.end, new_size - old_size)) {
		ret = (s64)old;
		goto out;
	}
	ret = -ENOMEM;
	if (!(flags & MREMAP_MAYMOVE))
		goto out;
	at = mm_map_as(mm, &v, old, new, new_size, flags & MREMAP_FIXED ? MAP_FIXED : 0);
	ret = at;
	if (at < 0)
		goto out;
	ret = mm_move(mm, old, (u64)at, min(old_size, new_size));
	if (!ret)
		ret = mm_unmap(mm, old, old_size);
	ret = ret ? ret : at;
out:
	if (v.file)
		fput(v.file);
	return ret;
}

/* Does what an advice asks of one area's part [start, end). mm->lock held. */
static int advise(struct vma *v, u64 start, u64 end, int advice)
{
	switch (advice) {
	case MADV_DONTNEED:
		mm_zap(v->mm, start, end, false);
		return 0;
	case MADV_HUGEPAGE:
		v->flags |= VM_HUGEPAGE;
		return 0;
	case MADV_NOHUGEPAGE:
		v->flags &= ~(u32)VM_HUGEPAGE;
		return 0;
	default:
		return 0;		/* the others are hints that change nothing a program could see */
	}
}

static bool known_advice(int advice)
{
	switch (advice) {
	case MADV_NORMAL ... MADV_DONTNEED:
	case MADV_FREE ... MADV_DODUMP:
	case MADV_COLD ... MADV_POPULATE_WRITE:
		return true;
	default:
		return false;
	}
}

/* MADV_REMOVE: holes in the files that are mapped at [at, end). An inode's lock is taken before an mm's, so every area's
 * turn comes with no lock held. */
static int remove_from_files(struct mm *mm, u64 at, u64 end)
{
	int err = 0, gap = 0;

	while (!err && at < end) {
		struct file *file = NULL;
		struct vma *v;
		u64 stop = end;
		loff_t off = 0;

		mutex_lock(&mm->lock);
		list_for_each_entry(v, &mm->areas, list)
			if (v->end > at)
				break;
		if (&v->list == &mm->areas || v->start >= end) {
			gap = -ENOMEM;
		} else {
			gap = v->start > at ? -ENOMEM : gap;
			at = max(at, v->start);
			stop = min(end, v->end);
			off = (loff_t)(PFN_PHYS(v->pgoff) + at - v->start);
			err = !v->file ? -EINVAL : !(v->flags & VM_SHARED && v->flags & VM_MAYWRITE) ? -EACCES : 0;
			if (!err) {
				file = v->file;
				file_get(file);
			}
		}
		mutex_unlock(&mm->lock);
		if (file) {
			err = vfs_fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off, (loff_t)(stop - at));
			fput(file);
		}
		at = stop;
	}
	return err ? err : gap;
}

SYSCALL_DEFINE3(madvise, 28, u64, addr, u64, size, int, advice)
{
	struct mm *mm = current_mm();
	u64 at = addr, end = addr + PAGE_ALIGN(size);
	struct vma *v;
	int err = 0;

	if (!known_advice(advice) || !IS_ALIGNED(addr, PAGE_SIZE) || PAGE_ALIGN(size) < size || end < addr)
		return -EINVAL;
	if (advice == MADV_REMOVE)
		return remove_from_files(mm, at, end);
	if (advice == MADV_POPULATE_READ || advice == MADV_POPULATE_WRITE) {
		err = populate(mm, addr, end, advice == MADV_POPULATE_WRITE);
		return err == -EACCES ? -EINVAL : err == -EFAULT ? -ENOMEM : err == -EIO ? -EFAULT : err;
	}
	mutex_lock(&mm->lock);
	list_for_each_entry(v, &mm->areas, list) {
		if (v->end <= at)
			continue;
		if (v->start >= end)
			break;
		if (v->start > at)
			err = -ENOMEM;	/* a gap; what lies behind it is done all the same */
		advise(v, max(at, v->start), min(end, v->end), advice);
		at = v->end;
	}
	mutex_unlock(&mm->lock);
	return at < end ? -ENOMEM : err;
}

/* Is all of [addr, end) mapped? */
static bool all_mapped(struct mm *mm, u64 addr, u64 end)
{
	mutex_lock(&mm->lock);
	while (addr < end) {
		struct vma *v = mm_find(mm, addr);

		if (!v)
			break;
		addr = v->end;
	}
	mutex_unlock(&mm->lock);
	return addr >= end;
}

SYSCALL_DEFINE3(msync, 26, u64, addr, u64, size, int, flags)
{
	if (!IS_ALIGNED(addr, PAGE_SIZE) || flags & ~7 || (flags & 5) == 5)
		return -EINVAL;
	return all_mapped(current_mm(), addr, addr + PAGE_ALIGN(size)) ? 0 : -ENOMEM;
}

SYSCALL_DEFINE3(mincore, 27, u64, addr, u64, size, u8 *, vec)
{
	struct mm *mm = current_mm();

	if (!IS_ALIGNED(addr, PAGE_SIZE))
		return -EINVAL;
	if (bad_range(addr, size) || !all_mapped(mm, addr, addr + PAGE_ALIGN(size)))
		return -ENOMEM;
	for (u64 i = 0; i < PFN_UP(size); i++) {
		u8 there = mm_get_entry(mm, addr + PFN_PHYS(i)) != 0;

		if (put_user(there, vec + i))
			return -EFAULT;
	}
	return 0;
}

/* Nothing is ever swapped out: to lock memory is to bring it in. */
SYSCALL_DEFINE2(mlock, 149, u64, addr, u64, size)
{
	u64 start = ALIGN_DOWN(addr, PAGE_SIZE), end = PAGE_ALIGN(addr + size);

	if (end < addr || !all_mapped(current_mm(), start, end))
		return -ENOMEM;
	return populate(current_mm(), start, end, false) == -ENOMEM ? -ENOMEM : 0;
}
SYSCALL_DEFINE2(munlock, 150, u64, addr, u64, size)
{
	return all_mapped(current_mm(), ALIGN_DOWN(addr, PAGE_SIZE), PAGE_ALIGN(addr + size)) ? 0 : -ENOMEM;
}
SYSCALL_DEFINE1(mlockall, 151, int, flags)
{
	return flags && !(flags & ~7) ? 0 : -EINVAL;
}
SYSCALL_DEFINE0(munlockall, 152)
{
	return 0;
}
