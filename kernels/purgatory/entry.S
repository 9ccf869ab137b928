/* Between two kernels: entered by the relocation code at its first byte, in 64-bit mode on identity page tables, with
 * interrupts off and nothing else to be relied on. Leaves for the next kernel's 64-bit entry in the state that the
 * boot protocol asks for: flat segments, code 0x10 and data 0x18, rsi = boot_params.
 *
 * The program is linked at 0 and runs anywhere: it refers to itself relative to the instruction pointer only.
 */
.section .head.text, "awx", @progbits
.code64
.globl purgatory
purgatory:
	jmp	start
	.org	0x3d8				/* struct purgatory */

start:
	leaq	stack_top(%rip), %rsp
	leaq	gdt(%rip), %rax
	movq	%rax, gdtr + 2(%rip)
	lgdt	gdtr(%rip)
	movl	$0x18, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	movl	%eax, %fs
	movl	%eax, %gs
	leaq	1f(%rip), %rax
	pushq	$0x10
	pushq	%rax
	lretq
1:	leaq	purgatory(%rip), %rdi
	xorl	%ebp, %ebp
	call	purgatory_verify
	testq	%rax, %rax
	jz	2f
	movq	purgatory + 32(%rip), %rsi	/* boot_params */
	xorl	%edi, %edi
	jmp	*purgatory + 24(%rip)		/* kernel */
2:	cli
	hlt
	jmp	2b

.section .data, "aw", @progbits
	.balign 8
gdt:	.quad	0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdtr:	.word	31
	.quad	0

.section .bss, "aw", @nobits
	.balign 16
	.skip	2048
stack_top:
