/* What a program has in the processor and the kernel does not use: FPU and SSE registers, GS base, page table.
 *
 * It stays loaded while kernel threads run; it is exchanged when another program's turn comes. `loaded` is the task
 * whose state it is. A task that ends detaches itself, so nobody saves into memory that is no longer there and
 * CR3 never points to a page table that was freed. FS base is a thread's, the scheduler exchanges it.
 */
#include "cpu.h"
#include "sched.h"
#include "string.h"
#include "task.h"
#include "uaccess.h"
#include "vma.h"

#define FPU_CONTROL		0x37f		/* all exceptions masked, extended precision, as after FNINIT */
#define FPU_MXCSR		0x1f80		/* all masked */
#define MXCSR_AT		24		/* offsets in the FXSAVE area (Intel SDM vol. 1, 10.5) */
#define MXCSR_MASK_AT		28
#define MXCSR_MASK_DEFAULT	0xffbf		/* what a zero in that place means */

static struct task *loaded;
static u32 mxcsr_mask;

static void fxsave(u8 to[512]) { __asm__ volatile("fxsave64 %0" : "=m"(*(u8 (*)[512])to)); }
static void fxrstor(const u8 from[512]) { __asm__ volatile("fxrstor64 %0" :: "m"(*(const u8 (*)[512])from)); }

void fpu_init(void)
{
	static u8 area[512] __aligned(16);

	write_cr0((read_cr0() & ~(CR0_EM | CR0_TS)) | CR0_MP | CR0_NE);
	write_cr4(read_cr4() | CR4_OSFXSR | CR4_OSXMMEXCPT);
	fxsave(area);
	mxcsr_mask = get_unaligned_u32(area + MXCSR_MASK_AT);
	if (!mxcsr_mask)
		mxcsr_mask = MXCSR_MASK_DEFAULT;
}

static void fpu_initial(u8 area[512])
{
	memset(area, 0, 512);
	put_unaligned_u32(FPU_CONTROL, area);
	put_unaligned_u32(FPU_MXCSR, area + MXCSR_AT);
}

void fpu_reset(struct task *t)
{
	u64 flags = local_irq_save();

	fpu_initial(t->fpu);
	if (t == loaded)
		fxrstor(t->fpu);
	local_irq_restore(flags);
}

void fpu_copy_current(u8 to[512])
{
	struct task *t = current_task();
	u64 flags = local_irq_save();

	fxsave(t->fpu);
	local_irq_restore(flags);
	memcpy(to, t->fpu, 512);
}

void fpu_load_current(u8 from[512])
{
	struct task *t = current_task();
	u64 flags;

	put_unaligned_u32(get_unaligned_u32(from + MXCSR_AT) & mxcsr_mask, from + MXCSR_AT);
	flags = local_irq_save();
	memcpy(t->fpu, from, 512);
	fxrstor(t->fpu);
	local_irq_restore(flags);
}

void set_fs_base(u64 base)
{
	preempt_disable();
	current->fs_base = base;
	wrmsr(MSR_FS_BASE, base);
	preempt_enable();
}

/* In the kernel a program's GS base is in the register that SWAPGS exchanges. */
void set_gs_base(u64 base)
{
	preempt_disable();
	current_task()->gs_base = base;
	wrmsr(MSR_KERNEL_GS_BASE, base);
	preempt_enable();
}

void switch_user_state(struct task *next)
{
	if (!next || next == loaded)
		return;
	if (loaded)
		fxsave(loaded->fpu);
	fxrstor(next->fpu);
	wrmsr(MSR_KERNEL_GS_BASE, next->gs_base);
	mm_switch(next->mm);
	loaded = next;
}

void user_state_attach(struct task *t)
{
	u64 flags = local_irq_save();

	t->thread = current;
	current->task = t;
	current->fs_base = t->start_fs_base;
	wrmsr(MSR_FS_BASE, t->start_fs_base);
	switch_user_state(t);
	local_irq_restore(flags);
}

void user_state_detach(void)
{
	u64 flags = local_irq_save();

	if (loaded == current->task)
		loaded = NULL;
	current->task = NULL;
	current->fs_base = 0;
	wrmsr(MSR_FS_BASE, 0);
	mm_switch(NULL);
	local_irq_restore(flags);
}
