/* Bringing in pages of programs, and ending those that touch what is not theirs. */
#include "cpu.h"
#include "pagecache.h"
#include "panic.h"
#include "printk.h"
#include "ptrace.h"
#include "string.h"
#include "task.h"
#include "uaccess.h"
#include "vfs.h"
#include "vma.h"

#define PF_PRESENT	1
#define PF_WRITE	2
#define PF_EXEC		16

#define SEGV_MAPERR	1
#define SEGV_ACCERR	2
#define BUS_ADRERR	2
#define SI_KERNEL	0x80

#define STACK_GUARD	(256 * PAGE_SIZE)	/* nothing else is mapped so near below a stack */

/* A stack that grows down to the address, if it may. mm->lock held. */
static struct vma *grow_stack(struct mm *mm, u64 addr)
{
	struct vma *v, *below = NULL;
	u64 limit = current_task() ? current_process()->rlim[RLIMIT_STACK].cur : 8 * MIB;

	list_for_each_entry(v, &mm->areas, list) {
		if (v->start > addr)
			break;
		below = v;
	}
	if (&v->list == &mm->areas || !(v->flags & VM_GROWSDOWN) || v->end - ALIGN_DOWN(addr, PAGE_SIZE) > limit)
		return NULL;
	if (below && below->end + STACK_GUARD > ALIGN_DOWN(addr, PAGE_SIZE))
		return NULL;
	v->start = ALIGN_DOWN(addr, PAGE_SIZE);
	return v;
}

static int map_new_page(struct vma *v, u64 addr, const void *contents)
{
	struct page *page = alloc_page(contents ? GFP_MOVABLE : GFP_MOVABLE | __GFP_ZERO);
	int err;

	if (!page)
		return -ENOMEM;
	if (contents)
		memcpy(page_address(page), contents, PAGE_SIZE);
	err = mm_set_page(v->mm, addr, page, v->flags & VM_WRITE, v->flags & VM_EXEC);
	if (err)
		put_page(page);
	return err;
}

/* A private page that is there but not writable: the only user's may be written as it is. */
static int copy_on_write(struct vma *v, u64 addr, u64 entry)
{
	struct page *page = phys_to_page(entry & PTE_ADDR);
	struct folio *f = page_folio(page);

	if (!f->page.mapping && f->page.refcount == 1) {
		folio_get(f);		/* for the new entry; the old one's goes */
		return mm_set_page(v->mm, addr, page, true, v->flags & VM_EXEC);
	}
	return map_new_page(v, addr, page_address(page));
}

static int fault_mapped(struct vma *v, u64 addr, bool write)
{
	struct mapping *m = v->mapping;
	struct inode *inode = m->inode;
	u64 index = v->pgoff + PFN_DOWN(addr - v->start), entry;
	struct folio *f;
	struct page *page;
	int err;

	mutex_lock(&m->lock);
	entry = mm_get_entry(v->mm, addr);
	if (index >= PFN_UP(READ_ONCE(inode->size))) {
		err = -EIO;
		goto out;
	}
	if (entry && !(v->flags & VM_SHARED)) {
		err = write && !(entry & PTE_W) ? copy_on_write(v, addr, entry) : 0;
		goto out;
	}
	if (v->flags & VM_HUGEPAGE && v->flags & VM_SHARED)
		inode->shmem->huge = true;
	f = shmem_get_folio(inode->shmem, index, inode->size);
	if (IS_ERR(f)) {
		err = (int)PTR_ERR(f);
		goto out;
	}
	page = &f->page + (index - f->page.index);
	if (write && !(v->flags & VM_SHARED)) {
		err = map_new_page(v, addr, page_address(page));
		goto out;
	}
	folio_get(f);
	err = mm_set_page(v->mm, addr, page, v->flags & VM_SHARED && v->flags & VM_WRITE, v->flags & VM_EXEC);
	if (err)
		folio_put(f);
out:
	mutex_unlock(&m->lock);
	return err;
}

static int fault_anonymous(struct vma *v, u64 addr, bool write)
{
	u64 entry = mm_get_entry(v->mm, addr);

	if (!entry)
		return map_new_page(v, addr, NULL);
	return write && !(entry & PTE_W) ? copy_on_write(v, addr, entry) : 0;
}

static int fault_device(struct vma *v, u64 addr)
{
	phys_addr_t phys;
	int err;

	mutex_lock(&v->mapping->lock);
	err = v->file->ops->device_page(v->file, v->pgoff + PFN_DOWN(addr - v->start), &phys);
	if (!err)
		err = mm_set_device(v->mm, addr, phys, v->flags & VM_WRITE);
	mutex_unlock(&v->mapping->lock);
	return err;
}

int mm_fault(struct mm *mm, u64 addr, bool write, bool exec)
{
	struct vma *v;
	int err;

	mutex_lock(&mm->lock);
	v = mm_find(mm, addr);
	if (!v)
		v = grow_stack(mm, addr);
	addr = ALIGN_DOWN(addr, PAGE_SIZE);
	if (!v)
		err = -EFAULT;
	else if (write ? !(v->flags & VM_WRITE) : exec ? !(v->flags & VM_EXEC)
						       : !(v->flags & (VM_READ | VM_WRITE | VM_EXEC)))
		err = -EACCES;
	else if (v->flags & VM_DEVICE)
		err = fault_device(v, addr);
	else
		err = v->mapping ? fault_mapped(v, addr, write) : fault_anonymous(v, addr, write);
	mutex_unlock(&mm->lock);
	return err;
}

u64 mm_access(struct mm *mm, u64 addr, void *buf, u64 size, bool write)
{
	u64 done = 0;

	while (done < size) {
		u64 n = min(size - done, PAGE_SIZE - addr % PAGE_SIZE), entry;
		struct page *page;
		u8 *p;

		if (addr >= USER_END || mm_fault(mm, addr, write, false))
			break;
		mutex_lock(&mm->lock);	/* nobody unmaps it meanwhile but a truncation, which the reference outlives */
		entry = mm_get_entry(mm, addr);
		if (entry & PTE_DEVICE) {	/* reading a register may change it: not for others */
			mutex_unlock(&mm->lock);
			break;
		}
		page = entry ? phys_to_page(entry & PTE_ADDR) : NULL;
		if (page)
			folio_get(page_folio(page));
		mutex_unlock(&mm->lock);
		if (!page)
			continue;
		p = (u8 *)page_address(page) + addr % PAGE_SIZE;
		if (write)
			memcpy(p, (u8 *)buf + done, n);
		else
			memcpy((u8 *)buf + done, p, n);
		folio_put(page_folio(page));
		addr += n;
		done += n;
	}
	return done;
}

static void bad_access(u64 addr, int err)
{
	if (err == -EIO)
		force_signal(SIGBUS, BUS_ADRERR, addr);
	else if (err != -ENOMEM)		/* then it is being killed */
		force_signal(SIGSEGV, err == -EACCES ? SEGV_ACCERR : SEGV_MAPERR, addr);
}

bool user_page_fault(struct pt_regs *regs, u64 addr)
{
	struct task *t = current_task();
	int err = -EFAULT;
	u32 turns = 0;
	u64 fixup;

	if (t && t->mm && addr < USER_END) {
		if (regs->rflags & RFLAGS_IF)
			local_irq_enable();
		do {
			err = mm_fault(t->mm, addr, regs->error_code & PF_WRITE, regs->error_code & PF_EXEC);
		} while (err == -ENOMEM && out_of_memory(!user_mode(regs), &turns));
		local_irq_disable();
		if (!err)
			return true;
	}
	if (user_mode(regs)) {
		local_irq_enable();
		bad_access(addr, err);
		local_irq_disable();
		return true;
	}
	if (addr >= USER_END)
		return false;		/* the kernel's own mistake, even in a copy */
	fixup = search_exception_table(regs->rip);
	if (!fixup)
		return false;
	regs->rip = fixup;
	return true;
}
