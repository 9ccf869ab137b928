/* Where the processor enters the kernel by a trap or an interrupt: 256 stubs and one way in and out.
 *
 * A stub makes the stack frame the same for all vectors (error code, vector), then everything is saved as
 * struct pt_regs and trap_dispatch(regs) is called. Between the saved registers and the call lies a frame of the
 * interrupted code (its return address is the interrupted instruction), so that a walk along the frame pointers
 * goes through a trap as through a call.
 *
 * GS holds the per-CPU area in the kernel and belongs to the program in user mode: coming from ring 3 it is
 * swapped. Traps that can come at any instruction, also between a system call's entry and its own swapgs (debug,
 * NMI, double fault, machine check), cannot judge by the ring. They look at the GS base itself: the kernel's is
 * negative, a program's is not.
 */

#define REGS_CS		(18 * 8)	/* offsetof(struct pt_regs, …); traps.c asserts them */
#define REGS_RIP	(17 * 8)
#define REGS_SIZE	(22 * 8)
#define PERCPU_KERNEL_STACK	16
#define MSR_GS_BASE	0xc0000101

.macro save_regs
	cld
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
.endm

.macro restore_regs
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
	addq	$16, %rsp		/* vector, error code */
.endm

/* The processor aligned the stack to 16 and pushed 5 words, the stub 2, save_regs 15, this 2: aligned again. */
.macro call_dispatch
	movq	%rsp, %rdi
	pushq	REGS_RIP(%rdi)
	pushq	%rbp
	movq	%rsp, %rbp
	call	trap_dispatch
	addq	$16, %rsp
.endm

.text

trap_entry:
	save_regs
	testb	$3, REGS_CS(%rsp)
	jz	1f
	swapgs
1:	call_dispatch
.globl trap_return			/* a stack that ends in a struct pt_regs continues there */
trap_return:
	testb	$3, REGS_CS(%rsp)
	jz	1f
	swapgs
1:	restore_regs
	iretq

/* From a program any of them may end in a signal, which sleeps: it goes on the thread's own stack, like all others. */
paranoid_entry:
	save_regs
	testb	$3, REGS_CS(%rsp)
	jz	1f
	swapgs
	movq	%rsp, %rsi
	movq	%gs:PERCPU_KERNEL_STACK, %rdi
	subq	$REGS_SIZE, %rdi
	movq	%rdi, %rsp
	movl	$(REGS_SIZE / 8), %ecx
	rep movsq
	call_dispatch
	jmp	trap_return

kernel_paranoid_entry:
	save_regs
1:	xorl	%ebx, %ebx
	movl	$MSR_GS_BASE, %ecx
	rdmsr
	testl	%edx, %edx
	js	1f
	swapgs
	incl	%ebx			/* kept over the call: to be swapped back */
1:	call_dispatch
	testl	%ebx, %ebx
	jz	2f
	swapgs
2:	restore_regs
	iretq

/* The processor pushes an error code itself for #DF, #TS, #NP, #SS, #GP, #PF, #AC, #CP, #VC and #SX. */
.globl trap_stubs
.balign 16
trap_stubs:
.set vector, 0
.rept 256
	.balign	16
	.if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30)
	pushq	$0
	.endif
	pushq	$vector
	.if vector == 8			/* whoever it comes from, its stack cannot be trusted */
	jmp	kernel_paranoid_entry
	.elseif vector == 1 || vector == 2 || vector == 18
	jmp	paranoid_entry
	.else
	jmp	trap_entry
	.endif
	.set vector, vector + 1
.endr

/* void load_segments(const void *gdt_pseudo_descriptor, u64 kernel_cs, u64 kernel_ds, u64 tss_selector) */
.globl load_segments
load_segments:
	lgdt	(%rdi)
	movl	%edx, %ds
	movl	%edx, %es
	movl	%edx, %ss
	xorl	%eax, %eax
	movl	%eax, %fs
	movl	%eax, %gs
	ltr	%cx
	popq	%rax
	pushq	%rsi
	pushq	%rax
	lretq

.section .note.GNU-stack, "", @progbits
