/* The first instructions.
 *
 *	offset 0	startup_32: the 32-bit entry of the Linux boot protocol, %esi = boot_params
 *	offset 0x1c0	the version, a string
 *	offset 0x200	startup_64: its 64-bit entry, %rsi = boot_params, image and parameters mapped 1:1
 *	pvh_start32	named by the PVH note (qemu -kernel), %ebx = start info, image at its linked address
 *
 * The image runs at any 2 MiB-aligned physical address. Until the jump to its linked (virtual) address everything is
 * reached relative to the instruction pointer, or to the physical address of _text, which is kept in %ebp/%rbp.
 * Nothing is assumed of memory outside the file: .bss is cleared here.
 */
#include RELEASE_HEADER

#define PTE_PW		0x003
#define PTE_PWPS	0x083
#define IMAGE_MAX_LOG2	25		/* 32 MiB: what the early tables map at KERNEL_BASE */

#define PHYS(sym)	((sym) - KERNEL_BASE + RELEASE_PREF_ADDRESS)

.section .note.Xen, "a", @note
	.balign 4
	.long 4, 4, 18				/* namesz, descsz, XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz "Xen"
	.long PHYS(pvh_start32)

.section .head.text, "ax", @progbits
.code32
.globl startup_32
startup_32:
	cli
	cld
	leal	0x1e8(%esi), %esp		/* the scratch field of boot_params, for one return address */
	call	1f
1:	popl	%ebp
	subl	$(1b - startup_32), %ebp
	xorl	%edx, %edx
	jmp	enter_long_mode

.globl pvh_start32
pvh_start32:
	cli
	cld
	movl	$PHYS(startup_32), %ebp
	movl	%ebx, %esi
	movl	$1, %edx

/* %ebp = physical _text, %esi = parameters, %edx = 1 for PVH. Maps 4 GiB 1:1 in tables behind .bss. */
enter_long_mode:
	leal	(boot_tables - startup_32)(%ebp), %ebx
	movl	%ebx, %edi
	xorl	%eax, %eax
	movl	$(6 * 4096 / 4), %ecx
	rep stosl
	leal	(4096 + PTE_PW)(%ebx), %eax
	movl	%eax, (%ebx)
	leal	4096(%ebx), %edi
	leal	(2 * 4096 + PTE_PW)(%ebx), %eax
	movl	$4, %ecx
1:	movl	%eax, (%edi)
	addl	$4096, %eax
	addl	$8, %edi
	loop	1b
	leal	(2 * 4096)(%ebx), %edi
	movl	$PTE_PWPS, %eax
	movl	$2048, %ecx
1:	movl	%eax, (%edi)
	addl	$(1 << 21), %eax
	addl	$8, %edi
	loop	1b
	movl	%ebx, %cr3
	movl	$0x20, %eax			/* PAE */
	movl	%eax, %cr4
	movl	%edx, %ebx
	movl	$0xc0000080, %ecx		/* EFER.LME */
	rdmsr
	btsl	$8, %eax
	wrmsr
	movl	%ebx, %edx
	leal	(boot_gdt - startup_32)(%ebp), %eax
	movl	%eax, (boot_gdtr + 2 - startup_32)(%ebp)
	lgdt	(boot_gdtr - startup_32)(%ebp)
	movl	$0x80000011, %eax		/* PG, ET, PE */
	movl	%eax, %cr0
	leal	(long_mode - startup_32)(%ebp), %eax
	movl	%eax, (far_pointer - startup_32)(%ebp)
	ljmp	*(far_pointer - startup_32)(%ebp)

	.balign 8
boot_gdt:
	.quad	0, 0x00af9b000000ffff, 0x00cf93000000ffff
boot_gdtr:
	.word	23
	.long	0
	.balign 8
far_pointer:
	.long	0
	.word	8

	.org	0x1c0				/* kernels/bzimage.py takes the version from here */
	.asciz	RELEASE_VERSION

	.org	0x200
.code64
.globl startup_64
startup_64:
	cli
	cld
	xorl	%edx, %edx
long_mode:
	leaq	startup_32(%rip), %rbp
	movl	%edx, %r12d
	xorl	%eax, %eax
	leaq	__bss_start(%rip), %rdi
	leaq	__bss_end(%rip), %rcx
	subq	%rdi, %rcx
	shrq	$3, %rcx
	rep stosq

	/* KERNEL_BASE -> the image, and this page 1:1 for the moment of the switch. The two may share tables only if
	 * the image were above 128 TiB. */
	leaq	early_pgd(%rip), %rbx
	leaq	early_pdpt_kernel + PTE_PW(%rip), %rax
	movq	%rax, 511 * 8(%rbx)
	leaq	early_pd_kernel + PTE_PW(%rip), %rax
	movq	%rax, early_pdpt_kernel + ((KERNEL_BASE >> 30) & 511) * 8(%rip)
	leaq	early_pd_kernel + ((KERNEL_BASE >> 21) & 511) * 8(%rip), %rdi
	leaq	PTE_PWPS(%rbp), %rax
	movl	$(1 << (IMAGE_MAX_LOG2 - 21)), %ecx
1:	movq	%rax, (%rdi)
	addq	$(1 << 21), %rax
	addq	$8, %rdi
	decl	%ecx
	jnz	1b

	leaq	early_pdpt_ident + PTE_PW(%rip), %rax
	movq	%rbp, %rcx
	shrq	$39, %rcx
	andl	$511, %ecx
	movq	%rax, (%rbx, %rcx, 8)
	leaq	early_pdpt_ident(%rip), %rdi
	leaq	early_pd_ident + PTE_PW(%rip), %rax
	movq	%rbp, %rcx
	shrq	$30, %rcx
	andl	$511, %ecx
	movq	%rax, (%rdi, %rcx, 8)
	leaq	early_pd_ident(%rip), %rdi
	movq	%rbp, %rcx
	shrq	$21, %rcx
	andl	$511, %ecx
	leaq	PTE_PWPS(%rbp), %rax
	movq	%rax, (%rdi, %rcx, 8)

	movl	$0x20, %eax			/* PAE; no global pages, no PCID left over */
	movq	%cr4, %rcx
	andl	$0x1000, %ecx			/* five-level paging can not be left in long mode */
	jnz	no_la57
	movq	%rax, %cr4
	movq	%rbx, %cr3
	movq	$1f, %rax
	jmp	*%rax
1:	movq	$boot_stack_top, %rsp
	movq	%rbp, %rdi
	movl	%r12d, %edx
	xorl	%ebp, %ebp
	pushq	%rbp				/* ends the backtrace */
	pushq	%rbp
	movq	$x86_64_start, %rax
	call	*%rax
	ud2

/* Entered with five-level page tables, which this kernel does not have. */
no_la57:
	movw	$0x3f8, %dx
	leaq	no_la57_text(%rip), %rsi
	movl	$(no_la57_end - no_la57_text), %ecx
	rep outsb
2:	hlt
	jmp	2b
no_la57_text:
	.ascii	"luemu: entered with 5-level paging; this kernel needs 4-level page tables\r\n"
no_la57_end:

.section .bss, "aw", @nobits
	.balign 4096
.globl early_pgd
early_pgd:		.skip 4096
early_pdpt_kernel:	.skip 4096
early_pd_kernel:	.skip 4096
early_pdpt_ident:	.skip 4096
early_pd_ident:		.skip 4096
.globl boot_stack
boot_stack:		.skip 16384
.globl boot_stack_top
boot_stack_top:

.section .noinit, "aw", @nobits
	.balign 4096
boot_tables:		.skip 6 * 4096
