/* Areas of programs' memory: mapping, unmapping, changing them, and their copies for fork. */
#include "cpu.h"
#include "pagecache.h"
#include "panic.h"
#include "string.h"
#include "task.h"
#include "uaccess.h"
#include "vfs.h"
#include "vma.h"

#define MMAP_BASE	0x00007ffff7fff000UL	/* the highest mapping ends here; the stack lies above */
#define MAP_TYPE	0x0f
#define MAP_SHARED_VALIDATE 0x03

struct mm *mm_create(void)
{
	struct mm *mm = kzalloc(sizeof(*mm), GFP_KERNEL);

	if (!mm)
		return NULL;
	mm->refs = 1;
	mutex_init(&mm->lock);
	INIT_LIST_HEAD(&mm->areas);
	mm->mmap_base = MMAP_BASE;
	mm->pgd = mm_pgd_alloc();
	if (!mm->pgd) {
		kfree(mm);
		return NULL;
	}
	return mm;
}

void mm_get(struct mm *mm) { __atomic_add_fetch(&mm->refs, 1, __ATOMIC_SEQ_CST); }

void mm_switch(struct mm *next)
{
	phys_addr_t pgd = virt_to_phys(next ? next->pgd : kernel_pgd);

	if (read_cr3() != pgd)
		write_cr3(pgd);
}

static bool counts_as_writer(const struct vma *v) { return v->flags & VM_SHARED && v->flags & VM_MAYWRITE; }

/* Into the list, behind `after` (a list entry), and among those who map the file. */
static void area_link(struct vma *v, struct list_head *after)
{
	list_add(&v->list, after);
	if (v->mapping) {
		mutex_lock(&v->mapping->lock);
		list_add_tail(&v->shared, &v->mapping->areas);
		v->mapping->writable += counts_as_writer(v);
		mutex_unlock(&v->mapping->lock);
	}
}

static void area_free(struct vma *v)
{
	list_del(&v->list);
	if (v->mapping) {
		mutex_lock(&v->mapping->lock);
		list_del(&v->shared);
		v->mapping->writable -= counts_as_writer(v);
		mutex_unlock(&v->mapping->lock);
	}
	if (v->file)
		fput(v->file);
	kfree(v);
}

/* Changes bounds; whoever removes a page from the file must not see them half changed. */
static void area_resize(struct vma *v, u64 start, u64 end)
{
	struct mapping *m = v->mapping;

	if (m)
		mutex_lock(&m->lock);
	if (m)
		v->pgoff += PFN_DOWN(start) - PFN_DOWN(v->start);
	v->start = start;
	v->end = end;
	if (m)
		mutex_unlock(&m->lock);
}

static struct vma *area_copy(const struct vma *v, struct mm *mm)
{
	struct vma *n = kmalloc(sizeof(*n), GFP_KERNEL);

	if (!n)
		return NULL;
	*n = *v;
	n->mm = mm;
	if (n->file)
		file_get(n->file);
	return n;
}

struct vma *mm_find(struct mm *mm, u64 addr)
{
	struct vma *v;

	list_for_each_entry(v, &mm->areas, list)
		if (addr < v->end)
			return addr >= v->start ? v : NULL;
	return NULL;
}

/* Cuts the area that contains addr in two there. */
static int area_split_at(struct mm *mm, u64 addr)
{
	struct vma *v = mm_find(mm, addr), *upper;

	if (!v || v->start == addr)
		return 0;
	upper = area_copy(v, mm);
	if (!upper)
		return -ENOMEM;
	upper->start = addr;
	if (upper->mapping)
		upper->pgoff += PFN_DOWN(addr - v->start);
	area_resize(v, v->start, addr);
	area_link(upper, &v->list);
	return 0;
}

static bool range_is_free(struct mm *mm, u64 addr, u64 size)
{
	struct vma *v;

	list_for_each_entry(v, &mm->areas, list)
		if (v->start < addr + size && addr < v->end)
			return false;
	return true;
}

/* The highest free range below mmap_base; 0 if there is none. */
static u64 find_free_range(struct mm *mm, u64 size)
{
	u64 end = mm->mmap_base;
	struct vma *v;

	list_for_each_entry_reverse(v, &mm->areas, list) {
		if (v->start >= end)
			continue;
		if (v->end + size <= end && v->end + size >= size)
			return end - size;
		end = min(end, v->start);
	}
	return end > size + 0x10000 ? end - size : 0;
}

static int unmap_locked(struct mm *mm, u64 addr, u64 size)
{
	struct vma *v, *next;
	int err;

	err = area_split_at(mm, addr);
	if (!err)
		err = area_split_at(mm, addr + size);
	if (err)
		return err;
	list_for_each_entry_safe(v, next, &mm->areas, list) {
		if (v->start >= addr + size || v->end <= addr)
			continue;
		mm_zap(mm, v->start, v->end, false);
		area_free(v);
	}
	return 0;
}

int mm_unmap(struct mm *mm, u64 addr, u64 size)
{
	int err;

	if (!IS_ALIGNED(addr, PAGE_SIZE) || !size || addr > USER_END || size > USER_END - addr)
		return -EINVAL;
	mutex_lock(&mm->lock);
	err = unmap_locked(mm, addr, PAGE_ALIGN(size));
	mutex_unlock(&mm->lock);
	return err;
}

static s64 choose_address(struct mm *mm, u64 addr, u64 size, u32 flags)
{
	if (flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)) {
		int err;

		if (!IS_ALIGNED(addr, PAGE_SIZE))
			return -EINVAL;
		if (addr > USER_END - size)
			return -ENOMEM;
		if (flags & MAP_FIXED_NOREPLACE)
			return range_is_free(mm, addr, size) ? (s64)addr : -EEXIST;
		err = unmap_locked(mm, addr, size);
		return err ? err : (s64)addr;
	}
	addr = ALIGN_UP(addr, PAGE_SIZE);
	if (!addr || addr > USER_END - size || !range_is_free(mm, addr, size))
		addr = find_free_range(mm, size);
	return addr ? (s64)addr : -ENOMEM;
}

/* What the file allows; 0 or -errno. */
static int check_file(struct file *file, u32 prot, bool shared)
{
	if (!(file->mode & FMODE_READ))
		return -EACCES;
	if (shared && prot & PROT_WRITE && !(file->mode & FMODE_WRITE))
		return -EACCES;
	return file->ops->mmap ? 0 : -ENODEV;
}

static void area_insert(struct mm *mm, struct vma *v)
{
	struct list_head *after = &mm->areas;
	struct vma *other;

	list_for_each_entry(other, &mm->areas, list) {
		if (other->start > v->start)
			break;
		after = &other->list;
	}
	area_link(v, after);
}

s64 mm_map(struct mm *mm, u64 addr, u64 size, u32 prot, u32 flags, struct file *file, u64 off)
{
	bool shared = (flags & MAP_TYPE) == MAP_SHARED || (flags & MAP_TYPE) == MAP_SHARED_VALIDATE;
	struct file *own = NULL;
	struct vma *v;
	s64 ret;

	if (!size || (!shared && (flags & MAP_TYPE) != MAP_PRIVATE) || !IS_ALIGNED(off, PAGE_SIZE))
		return -EINVAL;
	if (size > USER_END)
		return -ENOMEM;
	size = PAGE_ALIGN(size);
	if (off + size < off)
		return -EOVERFLOW;
	if (file) {
		ret = check_file(file, prot, shared);
		if (ret)
			return ret;
	} else if (shared) {
		own = file = shmem_file_setup("dev/zero", size, F_SEAL_SEAL, 0777, O_RDWR);
		if (IS_ERR(file))
			return PTR_ERR(file);
		off = 0;
	}
	v = kzalloc(sizeof(*v), GFP_KERNEL);
	if (!v) {
		ret = -ENOMEM;
		goto out_file;
	}
	v->mm = mm;
	v->flags = (prot & (PROT_READ | PROT_WRITE | PROT_EXEC)) | (shared ? VM_SHARED : 0) |
		   (flags & MAP_GROWSDOWN ? VM_GROWSDOWN : 0) |
		   (!shared || !file || file->mode & FMODE_WRITE ? VM_MAYWRITE : 0);
	mutex_lock(&mm->lock);
	ret = choose_address(mm, addr, size, flags);
	if (ret < 0)
		goto out_unlock;
	v->start = (u64)ret;
	v->end = v->start + size;
	if (file) {
		int err;

		v->pgoff = PFN_DOWN(off);
		v->file = file;
		file_get(file);
		err = file->ops->mmap(file, v);	/* may put another file in its place */
		if (err) {
			fput(v->file);
			ret = err;
			goto out_unlock;
		}
	}
	area_insert(mm, v);
	v = NULL;
out_unlock:
	mutex_unlock(&mm->lock);
	kfree(v);
out_file:
	if (own)
		fput(own);
	return ret;
}

s64 mm_map_as(struct mm *mm, const struct vma *like, u64 from, u64 addr, u64 size, u32 flags)
{
	struct vma *v = kmalloc(sizeof(*v), GFP_KERNEL);
	s64 ret;

	if (!v)
		return -ENOMEM;
	*v = *like;
	mutex_lock(&mm->lock);
	ret = choose_address(mm, addr, size, flags);
	if (ret >= 0) {
		v->start = (u64)ret;
		v->end = v->start + size;
		if (v->file)
			file_get(v->file);
		if (v->mapping)
			v->pgoff += PFN_DOWN(from - like->start);
		area_insert(mm, v);
		v = NULL;
	}
	mutex_unlock(&mm->lock);
	kfree(v);
	return ret;
}

bool mm_extend(struct mm *mm, u64 end, u64 more)
{
	struct vma *v;
	bool ok;

	mutex_lock(&mm->lock);
	v = mm_find(mm, end - 1);
	ok = v && v->end == end && more <= USER_END - end && range_is_free(mm, end, more);
	if (ok)
		area_resize(v, v->start, end + more);
	mutex_unlock(&mm->lock);
	return ok;
}

int mm_protect(struct mm *mm, u64 addr, u64 size, u32 prot)
{
	u64 end = addr + size, at = addr;
	struct vma *v;
	int err = -ENOMEM;

	mutex_lock(&mm->lock);
	if (area_split_at(mm, addr) || area_split_at(mm, end))
		goto out;
	list_for_each_entry(v, &mm->areas, list) {
		if (v->end <= at)
			continue;
		if (v->start > at || at >= end)
			break;
		if (prot & PROT_WRITE && !(v->flags & VM_MAYWRITE)) {
			err = -EACCES;
			goto out;
		}
		v->flags = (v->flags & ~(u32)(VM_READ | VM_WRITE | VM_EXEC)) | prot;
		if (prot & (PROT_READ | PROT_WRITE | PROT_EXEC))
			mm_protect_entries(mm, v->start, v->end, prot & PROT_EXEC);
		else
			mm_hide_entries(mm, v->start, v->end);
		at = v->end;
	}
	if (at >= end)
		err = 0;
out:
	mutex_unlock(&mm->lock);
	return err;
}

int mm_move(struct mm *mm, u64 old, u64 new, u64 size)
{
	return mm_move_entries(mm, old, new, size);
}

static void mm_free(struct mm *mm)
{
	struct vma *v, *next;

	list_for_each_entry_safe(v, next, &mm->areas, list) {
		mm_zap(mm, v->start, v->end, false);
		area_free(v);
	}
	mm_tables_free(mm);
	kfree(mm);
}

void mm_put(struct mm *mm)
{
	if (!__atomic_sub_fetch(&mm->refs, 1, __ATOMIC_SEQ_CST))
		mm_free(mm);
}

struct mm *mm_fork(struct mm *mm)
{
	struct mm *copy = mm_create();
	struct vma *v;
	int err = 0;

	if (!copy)
		return NULL;
	mutex_lock(&mm->lock);
	copy->start_brk = mm->start_brk;
	copy->brk = mm->brk;
	copy->mmap_base = mm->mmap_base;
	copy->stack_top = mm->stack_top;
	copy->arg_start = mm->arg_start;
	copy->arg_end = mm->arg_end;
	copy->env_start = mm->env_start;
	copy->env_end = mm->env_end;
	list_for_each_entry(v, &mm->areas, list) {
		struct vma *n = area_copy(v, copy);

		if (!n) {
			err = -ENOMEM;
			break;
		}
		area_link(n, copy->areas.prev);
		if (v->flags & VM_SHARED)
			continue;
		if (v->mapping)
			mutex_lock(&v->mapping->lock);
		err = mm_copy_entries(copy, mm, v->start, v->end);
		if (v->mapping)
			mutex_unlock(&v->mapping->lock);
		if (err)
			break;
	}
	mutex_unlock(&mm->lock);
	if (err) {
		mm_put(copy);
		return NULL;
	}
	return copy;
}

void unmap_mapping_range(struct mapping *m, u64 first, u64 last, bool even_private)
{
	struct vma *v;

	list_for_each_entry(v, &m->areas, shared) {
		u64 from = max(first, v->pgoff), pages = PFN_DOWN(v->end - v->start), to = min(last, v->pgoff + pages - 1);

		if (from <= to)
			mm_zap(v->mm, v->start + PFN_PHYS(from - v->pgoff), v->start + PFN_PHYS(to - v->pgoff + 1),
			       !even_private);
	}
}
