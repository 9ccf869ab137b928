/* The frame of a signal handler on the program's stack, in Linux's layout (the ucontext of <ucontext.h>): handlers of
 * any C library read and change it, and rt_sigreturn(2) takes everything back from it.
 *
 *	high	FXSAVE area, 512 bytes, 64-aligned
 *		siginfo, 128 bytes
 *		ucontext: registers, blocked signals
 *	low	return address: the library's restorer, which calls rt_sigreturn
 *
 * All of it is the program's to forge. Registers that matter to the kernel (segments, flags, MXCSR) are put right on the
 * way back; a rip that no program can have is caught in exit_to_user().
 */
#include "cpu.h"
#include "sigframe.h"
#include "string.h"
#include "syscall.h"
#include "task.h"
#include "uaccess.h"

#define UC_SIGCONTEXT_SS	0x2
#define UC_STRICT_RESTORE_SS	0x4
#define RED_ZONE		128		/* below the stack pointer, the ABI lets leaf functions use it */
/* What sigreturn may set: CF PF AF ZF SF TF DF OF RF AC. */
#define RFLAGS_USER		0x00050dd5UL
#define RFLAGS_FIXED		0x2UL

struct sigcontext {
	u64 r8, r9, r10, r11, r12, r13, r14, r15;
	u64 rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, rflags;
	u16 cs, gs, fs, ss;
	u64 err, trapno, oldmask, cr2;
	u64 fpstate;				/* address, 0: none */
	u64 reserved[8];
};
static_assert(sizeof(struct sigcontext) == 256, "sigcontext");

struct ucontext {
	u64 flags, link;
	struct sigaltstack stack;
	struct sigcontext mcontext;
	sigset_t sigmask;
};
static_assert(sizeof(struct ucontext) == 304, "ucontext as the kernel writes it");

struct rt_sigframe {
	u64 return_address;
	struct ucontext uc;
	u8 info[SIGINFO_SIZE];
};
static_assert(sizeof(struct rt_sigframe) == 440, "rt_sigframe");

bool on_altstack(const struct task *t, u64 sp)
{
	return !(t->sas_flags & SS_AUTODISARM) && sp > t->sas_sp && sp - t->sas_sp <= t->sas_size;
}

/* Lowest address of the handler's stack, or 0 if it goes out of the alternate stack. */
static u64 place_frame(const struct task *t, const struct k_sigaction *action, u64 rsp, u64 *fpstate)
{
	bool nested = on_altstack(t, rsp), alternate = nested;
	u64 sp = rsp - RED_ZONE, frame;

	if (action->flags & SA_ONSTACK && t->sas_size && !nested) {
		sp = t->sas_sp + t->sas_size;
		alternate = true;
	}
	*fpstate = ALIGN_DOWN(sp - 512, 64);
	/* at the handler's first instruction the stack is as after a call: 8 below a multiple of 16 */
	frame = ALIGN_DOWN(*fpstate - sizeof(struct rt_sigframe), 16) - 8;
	if (frame > rsp && !alternate)
		return 0;
	if (alternate && (frame < t->sas_sp || frame >= t->sas_sp + t->sas_size))
		return 0;
	return frame;
}

void siginfo_to_user_form(u8 out[SIGINFO_SIZE], const struct siginfo *info)
{
	memset(out, 0, SIGINFO_SIZE);
	memcpy(out, info, sizeof(*info));
}

int setup_sigframe(struct pt_regs *regs, int sig, const struct k_sigaction *action, const struct siginfo *info,
		   sigset_t blocked)
{
	struct task *t = current_task();
	struct rt_sigframe frame;
	u8 fpu[512] __aligned(16);
	u64 fpstate, sp = place_frame(t, action, regs->rsp, &fpstate);

	if (!sp || !(action->flags & SA_RESTORER))
		return -EFAULT;
	memset(&frame, 0, sizeof(frame));
	frame.return_address = action->restorer;
	frame.uc.flags = UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS;
	save_altstack(t, &frame.uc.stack, regs->rsp);
	frame.uc.mcontext = (struct sigcontext){
		.r8 = regs->r8, .r9 = regs->r9, .r10 = regs->r10, .r11 = regs->r11, .r12 = regs->r12,
		.r13 = regs->r13, .r14 = regs->r14, .r15 = regs->r15, .rdi = regs->rdi, .rsi = regs->rsi,
		.rbp = regs->rbp, .rbx = regs->rbx, .rdx = regs->rdx, .rax = regs->rax, .rcx = regs->rcx,
		.rsp = regs->rsp, .rip = regs->rip, .rflags = regs->rflags, .cs = (u16)regs->cs, .ss = (u16)regs->ss,
		.err = t->trap_error, .trapno = t->trap_vector, .oldmask = blocked, .cr2 = t->trap_address,
		.fpstate = fpstate,
	};
	frame.uc.sigmask = blocked;
	siginfo_to_user_form(frame.info, info);
	fpu_copy_current(fpu);
	if (!access_ok((void *)sp, fpstate + 512 - sp) || copy_to_user((void *)fpstate, fpu, sizeof(fpu)) ||
	    copy_to_user((void *)sp, &frame, sizeof(frame)))
		return -EFAULT;

	regs->rdi = (u64)sig;
	regs->rsi = sp + offsetof(struct rt_sigframe, info);
	regs->rdx = sp + offsetof(struct rt_sigframe, uc);
	regs->rax = 0;
	regs->rip = action->handler;
	regs->rsp = sp;
	regs->cs = USER_CS;
	regs->ss = USER_DS;
	regs->rflags &= ~(RFLAGS_DF | RFLAGS_RF | RFLAGS_TF);
	if (t->sas_flags & SS_AUTODISARM) {
		t->sas_sp = t->sas_size = 0;
		t->sas_flags = SS_DISABLE;
	}
	return 0;
}

static int restore_fpu(u64 fpstate)
{
	u8 fpu[512] __aligned(16);

	if (!fpstate) {
		fpu_reset(current_task());
		return 0;
	}
	if (copy_from_user(fpu, (const void *)fpstate, sizeof(fpu)))
		return -EFAULT;
	fpu_load_current(fpu);
	return 0;
}

static void restore_registers(struct pt_regs *regs, const struct sigcontext *sc)
{
	regs->r8 = sc->r8, regs->r9 = sc->r9, regs->r10 = sc->r10, regs->r11 = sc->r11;
	regs->r12 = sc->r12, regs->r13 = sc->r13, regs->r14 = sc->r14, regs->r15 = sc->r15;
	regs->rdi = sc->rdi, regs->rsi = sc->rsi, regs->rbp = sc->rbp, regs->rbx = sc->rbx;
	regs->rdx = sc->rdx, regs->rax = sc->rax, regs->rcx = sc->rcx;
	regs->rsp = sc->rsp, regs->rip = sc->rip;
	regs->rflags = (sc->rflags & RFLAGS_USER) | RFLAGS_IF | RFLAGS_FIXED;
	regs->cs = sc->cs == USER_CS32 ? USER_CS32 : USER_CS;
	regs->ss = USER_DS;
}

SYSCALL_DEFINE0(rt_sigreturn, 15)
{
	struct task *t = current_task();
	struct pt_regs *regs = task_regs(t);
	struct rt_sigframe frame;

	t->orig_rax = ~0UL;		/* what is in rax is no result: nothing is restarted */
	/* the restorer has taken the return address */
	if (copy_from_user(&frame, (const void *)(regs->rsp - 8), sizeof(frame)))
		goto bad;
	set_blocked(frame.uc.sigmask);
	if (restore_fpu(frame.uc.mcontext.fpstate))
		goto bad;
	restore_registers(regs, &frame.uc.mcontext);
	restore_altstack(t, &frame.uc.stack, regs->rsp);
	return (s64)regs->rax;
bad:
	force_signal(SIGSEGV, SI_KERNEL, 0);
	return 0;
}
