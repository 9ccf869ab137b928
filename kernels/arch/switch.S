/* The switch between two threads, in the kernel, with interrupts off: what the calling convention makes a function
 * keep goes on the old stack, then the stack is exchanged. Everything else was saved by the caller or by the trap.
 *
 * void switch_stacks(u64 *save_rsp, u64 load_rsp)
 */
.text
.globl switch_stacks
switch_stacks:
	pushq	%rbp
	pushq	%rbx
	pushq	%r12
	pushq	%r13
	pushq	%r14
	pushq	%r15
	movq	%rsp, (%rdi)
	movq	%rsi, %rsp
	popq	%r15
	popq	%r14
	popq	%r13
	popq	%r12
	popq	%rbx
	popq	%rbp
	ret

/* A new thread's stack ends as if it had called switch_stacks() from here; %rbp is 0, the end of every backtrace. */
.globl thread_start
thread_start:
	call	thread_first_run
	ud2

.section .note.GNU-stack, "", @progbits
