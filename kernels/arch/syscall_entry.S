/* Where programs enter the kernel by SYSCALL, and where the kernel leaves for them.
 *
 * SYSCALL changes no stack: interrupts are off (MSR_SYSCALL_MASK) until the kernel's is there. What it put into %rcx
 * and %r11 goes into the same struct pt_regs that a trap makes, so everything behind sees one kind of entry.
 *
 * SYSRET is the quick way back. It takes rip from %rcx and flags from %r11 and loads fixed segments, so it is used
 * only for registers that look as SYSCALL left them (syscall_dispatch() says so); IRET for all others. In particular a
 * rip that is not canonical would fault in ring 0, on the program's stack.
 */
#define VECTOR_SYSCALL	0x100		/* in pt_regs: no vector of a trap */
#define USER_DS		0x23
#define USER_CS		0x2b
#define PERCPU_KERNEL_STACK	16	/* offsetof(struct percpu, …); syscall.c asserts them */
#define PERCPU_USER_RSP		24
#define REGS_SIZE	(22 * 8)
#define REGS_RCX	(11 * 8)
#define REGS_RIP	(17 * 8)
#define REGS_RFLAGS	(19 * 8)
#define REGS_RSP	(20 * 8)

.text
.globl syscall_entry
syscall_entry:
	swapgs
	movq	%rsp, %gs:PERCPU_USER_RSP
	movq	%gs:PERCPU_KERNEL_STACK, %rsp
	pushq	$USER_DS
	pushq	%gs:PERCPU_USER_RSP
	pushq	%r11
	pushq	$USER_CS
	pushq	%rcx
	pushq	$0
	pushq	$VECTOR_SYSCALL
	pushq	%rdi
	pushq	%rsi
	pushq	%rdx
	pushq	%rcx
	pushq	%rax
	pushq	%r8
	pushq	%r9
	pushq	%r10
	pushq	%r11
	pushq	%rbx
	pushq	%rbp
	pushq	%r12
	pushq	%r13
	pushq	%r14
	pushq	%r15
	xorl	%ebp, %ebp		/* backtraces end here */
	movq	%rsp, %rdi
	call	syscall_dispatch
	testb	%al, %al
	jz	trap_return
	popq	%r15
	popq	%r14
	popq	%r13
	popq	%r12
	popq	%rbp
	popq	%rbx
	popq	%r11
	popq	%r10
	popq	%r9
	popq	%r8
	popq	%rax
	popq	%rcx
	popq	%rdx
	popq	%rsi
	popq	%rdi
	movq	(REGS_RIP - 15 * 8)(%rsp), %rcx
	movq	(REGS_RFLAGS - 15 * 8)(%rsp), %r11
	movq	(REGS_RSP - 15 * 8)(%rsp), %rsp
	swapgs
	sysretq

/* SYSCALL of 32-bit code (only some processors have it): there are no such system calls. */
.globl syscall_entry_32
syscall_entry_32:
	movl	$-38, %eax
	sysretl

/* _Noreturn void enter_user(const struct pt_regs *regs): the registers become those of an entry into the kernel, at the
 * top of its stack, and the way back is taken. */
.globl enter_user
enter_user:
	cli
	movq	%gs:PERCPU_KERNEL_STACK, %rsp
	subq	$REGS_SIZE, %rsp
	movq	%rdi, %rsi
	movq	%rsp, %rdi
	movl	$(REGS_SIZE / 8), %ecx
	cld
	rep movsq
	xorl	%ebp, %ebp
	movq	%rsp, %rdi
	call	exit_to_user
	jmp	trap_return

.section .note.GNU-stack, "", @progbits
