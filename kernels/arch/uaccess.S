/* Copies that may meet an address that is not there. Each instruction that touches the program's memory stands in
 * .ex_table with the place where it goes on then. All return in %rax how many bytes were not copied.
 *
 *	u64 __copy_user(void *dst, const void *src, u64 size);
 *	u64 __clear_user(void *dst, u64 size);
 */
#define EX(from, to)						\
	.pushsection .ex_table, "a", @progbits;			\
	.quad from, to;						\
	.popsection

.text
.globl __copy_user
__copy_user:
	movq	%rdx, %rcx
	shrq	$3, %rcx
	andl	$7, %edx
1:	rep movsq
	movl	%edx, %ecx
2:	rep movsb
	xorl	%eax, %eax
	ret
3:	/* %rcx words and the tail are left; byte by byte, as far as it goes */
	leaq	(%rdx, %rcx, 8), %rcx
4:	rep movsb
5:	movq	%rcx, %rax
	ret
	EX(1b, 3b)
	EX(2b, 5b)
	EX(4b, 5b)

.globl __clear_user
__clear_user:
	movq	%rsi, %rcx
	shrq	$3, %rcx
	movl	%esi, %edx
	andl	$7, %edx
	xorl	%eax, %eax
6:	rep stosq
	movl	%edx, %ecx
7:	rep stosb
	ret
8:	leaq	(%rdx, %rcx, 8), %rcx
9:	rep stosb
10:	movq	%rcx, %rax
	ret
	EX(6b, 8b)
	EX(7b, 10b)
	EX(9b, 10b)

/* s64 __strncpy_user(char *dst, const char *src, u64 size): length, size without terminator, or -EFAULT */
.globl __strncpy_user
__strncpy_user:
	xorl	%eax, %eax
11:	cmpq	%rdx, %rax
	je	13f
12:	movb	(%rsi, %rax), %cl
	movb	%cl, (%rdi, %rax)
	testb	%cl, %cl
	je	13f
	incq	%rax
	jmp	11b
13:	ret
14:	movq	$-14, %rax
	ret
	EX(12b, 14b)
