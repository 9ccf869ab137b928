/* Copies the segments of the next kernel to their places and enters its purgatory.
 *
 * Runs from a copy in a control page, at that page's physical address, on page tables that map all RAM 1:1, so that
 * nothing of the old kernel is needed: not its text, stack, descriptor tables or page tables, all of which may be in the
 * way of a segment. No stack is used. Position independent.
 *
 *	%rdi	first entry of the list of copies		%rbx	next entry
 *	%rsi	where to go at the end				%rdx	the same
 */
#include "kexec.h"

#define PAGE_BITS	$-4096

.section .text, "ax", @progbits
.code64
.globl relocate_start, relocate_end
.balign 16
relocate_start:
	lidt	no_idt(%rip)			/* a fault from here on resets the machine: there is nobody left */
	movl	$0x20, %eax			/* PAE; global pages and protections go */
	movq	%rax, %cr4
	movl	$0x80000033, %eax		/* PG, NE, ET, MP, PE; no write protection */
	movq	%rax, %cr0
	cld
	movq	%rsi, %rdx
	movq	%rdi, %rsi
	jmp	entry

next:	movq	(%rbx), %rsi
	addq	$8, %rbx
entry:	testb	$IND_SOURCE, %sil
	jz	no_source
	andq	PAGE_BITS, %rsi
	movl	$512, %ecx
	rep movsq				/* leaves %rdi at the next page */
	jmp	next

no_source:
	testb	$IND_DESTINATION, %sil
	jz	no_destination
	movq	%rsi, %rdi
	andq	PAGE_BITS, %rdi
	jmp	next

no_destination:
	testb	$IND_INDIRECTION, %sil
	jz	done
	movq	%rsi, %rbx
	andq	PAGE_BITS, %rbx
	jmp	next

done:	jmp	*%rdx

no_idt:	.word	0
	.quad	0
relocate_end:
