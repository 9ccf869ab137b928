/* Traps of programs: what the processor refuses becomes a signal, with the number, code and address that Linux gives.
 *
 * A page fault is first a question to the memory of the program (mm/fault.c); only an address that is not the
 * program's is an error. If nobody handles the signal, one line on the console says where it happened.
 */
#include "arch.h"
#include "cpu.h"
#include "printk.h"
#include "sched.h"
#include "signal.h"
#include "string.h"
#include "task.h"
#include "traps.h"
#include "uaccess.h"
#include "vfs.h"
#include "vma.h"

#define DR6_STEP	(1UL << 14)

/* What the exceptions of a floating point unit are called, lowest bit first; several at once: the first counts. */
static int fpu_code(u32 exceptions)
{
	if (exceptions & 0x01)
		return FPE_FLTINV;
	if (exceptions & 0x04)
		return FPE_FLTDIV;
	if (exceptions & 0x08)
		return FPE_FLTOVF;
	if (exceptions & 0x12)		/* denormal operand, underflow */
		return FPE_FLTUND;
	if (exceptions & 0x20)
		return FPE_FLTRES;
	return SI_KERNEL;
}

/* Unmasked and pending exceptions, from the state that FXSAVE wrote. */
static int floating_point_code(bool sse)
{
	u8 area[512] __aligned(16);
	u32 control, status;

	fpu_copy_current(area);
	if (sse) {
		status = get_unaligned_u32(area + 24);		/* MXCSR has both */
		return fpu_code(~(status >> 7) & status & 0x3f);
	}
	control = get_unaligned_u32(area);
	status = control >> 16;
	return fpu_code(~control & status & 0x3f);
}

static void debug_trap(struct pt_regs *regs)
{
	u64 dr6;

	__asm__ volatile("mov %%dr6, %0" : "=r"(dr6));
	__asm__ volatile("mov %0, %%dr6" :: "r"(0xffff0ff0UL));
	force_signal(SIGTRAP, dr6 & DR6_STEP ? TRAP_TRACE : TRAP_BRKPT, regs->rip);
}

static void page_fault(struct pt_regs *regs, u64 address)
{
	if (address < USER_END && user_page_fault(regs, address))
		return;
	if (address >= USER_END)		/* what the kernel has mapped there is nobody's business */
		current_task()->trap_error |= PF_PRESENT;
	force_signal(SIGSEGV, address < USER_END && regs->error_code & PF_PRESENT ? SEGV_ACCERR : SEGV_MAPERR, address);
}

void user_trap(struct pt_regs *regs, u64 address)
{
	struct task *t = current_task();

	if (regs->vector == TRAP_NMI)
		return;
	t->trap_vector = regs->vector;
	t->trap_error = regs->error_code;
	t->trap_address = address;
	local_irq_enable();
	switch (regs->vector) {
	case TRAP_PF:
		page_fault(regs, address);
		break;
	case TRAP_DE:
		force_signal(SIGFPE, FPE_INTDIV, regs->rip);
		break;
	case TRAP_DB:
		debug_trap(regs);
		break;
	case TRAP_BP:
		force_signal(SIGTRAP, SI_KERNEL, 0);
		break;
	case TRAP_UD:
		force_signal(SIGILL, ILL_ILLOPN, regs->rip);
		break;
	case TRAP_NP:
	case TRAP_SS:
		force_signal(SIGBUS, SI_KERNEL, 0);
		break;
	case TRAP_AC:
		force_signal(SIGBUS, BUS_ADRALN, 0);
		break;
	case TRAP_MF:
	case TRAP_XF:
		force_signal(SIGFPE, floating_point_code(regs->vector == TRAP_XF), regs->rip);
		break;
	default:
		force_signal(SIGSEGV, SI_KERNEL, 0);
		break;
	}
}

bool kernel_fault_on_user(struct pt_regs *regs, u64 address)
{
	if (regs->rflags & RFLAGS_IF)
		local_irq_enable();
	return user_page_fault(regs, address);
}

/* " in NAME[start+size]" of the mapped file that the instruction is in. */
static void describe_place(u64 rip, char *buf, u64 size)
{
	struct mm *mm = current_task()->mm;
	struct vma *vma;

	buf[0] = '\0';
	mutex_lock(&mm->lock);
	vma = mm_find(mm, rip);
	if (vma && vma->file && vma->file->dentry)
		snprintf(buf, size, " in %s[%lx+%lx]", vma->file->dentry->name, vma->start, vma->end - vma->start);
	mutex_unlock(&mm->lock);
}

static const char *trap_text(u64 vector)
{
	switch (vector) {
	case TRAP_DE: return "divide error";
	case TRAP_BP: return "int3";
	case TRAP_OF: return "overflow";
	case TRAP_BR: return "bounds";
	case TRAP_UD: return "invalid opcode";
	case TRAP_NP: return "segment not present";
	case TRAP_SS: return "stack segment";
	case TRAP_MF: return "fpu exception";
	case TRAP_XF: return "simd exception";
	default: return NULL;
	}
}

void log_user_fault(int sig)
{
	const struct task *t = current_task();
	const struct pt_regs *regs = task_regs(current_task());
	const char *comm = t->process->comm;
	char place[NAME_MAX + 64];

	if (t->trap_vector >= TRAP_COUNT || regs->vector != t->trap_vector)
		return;
	describe_place(regs->rip, place, sizeof(place));
	if (t->trap_vector == TRAP_PF && sig == SIGSEGV)
		pr_info("%s[%d]: segfault at %lx ip %016lx sp %016lx error %lx%s\n", comm, t->tid, t->trap_address,
			regs->rip, regs->rsp, t->trap_error, place);
	else if (t->trap_vector == TRAP_GP)
		pr_info("traps: %s[%d] general protection fault ip:%lx sp:%lx error:%lx%s\n", comm, t->tid, regs->rip,
			regs->rsp, t->trap_error, place);
	else if (trap_text(t->trap_vector))
		pr_info("traps: %s[%d] trap %s ip:%lx sp:%lx error:%lx%s\n", comm, t->tid, trap_text(t->trap_vector),
			regs->rip, regs->rsp, t->trap_error, place);
}
