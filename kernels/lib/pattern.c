/* Contents for tests.
 *
 * Gigabytes are written and read again with them, so a word may cost only a few instructions: three to
 * write and sum it, one to sum it, four to compare it. The carry of the sum stays in the flag from word to
 * word, which is why those loops are assembly. Ones' complement addition has one result whatever the order
 * and the width of the words, except that a sum of nothing but zeros is 0 and any other zero is all ones.
 */
#include "pattern.h"
#include "page.h"

static u64 mix(u64 z)
{
	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9UL;
	z = (z ^ z >> 27) * 0x94d049bb133111ebUL;
	return z ^ z >> 31;
}

struct pattern make_pattern(u64 seed, u64 index)
{
	u64 x = mix(seed + index * 0x9e3779b97f4a7c15UL);

	return (struct pattern){ .start = x, .step = mix(x + 0x9e3779b97f4a7c15UL) | 1 };
}

static u32 fold(u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	return (u32)sum;
}

#define FILL_WORD(offset)				\
	"	movq	%[x], " #offset "(%[p])\n"	\
	"	adcq	%[x], %[sum]\n"			\
	"	leaq	(%[x], %[step]), %[x]\n"

u32 pattern_fill(struct pattern pattern, void *buf, u64 size, u32 sum32)
{
	u64 sum = sum32, blocks = size / PATTERN_BLOCK;

	if (!blocks)
		return sum32;
	__asm__ volatile(
		"	clc\n"
		"1:\n"
		FILL_WORD(0) FILL_WORD(8) FILL_WORD(16) FILL_WORD(24)
		FILL_WORD(32) FILL_WORD(40) FILL_WORD(48) FILL_WORD(56)
		"	leaq	64(%[p]), %[p]\n"
		"	decq	%[n]\n"			/* leaves the carry alone */
		"	jnz	1b\n"
		"	adcq	$0, %[sum]\n"
		"	adcq	$0, %[sum]\n"
		: [p] "+r"(buf), [n] "+r"(blocks), [x] "+r"(pattern.start), [sum] "+r"(sum)
		: [step] "r"(pattern.step) : "memory", "cc");
	return fold(sum);
}

u32 csum_partial(const void *buf, u64 size, u32 sum32)
{
	u64 sum = sum32, blocks = size / PATTERN_BLOCK;

	if (!blocks)
		return sum32;
	__asm__ volatile(
		"	clc\n"
		"1:	adcq	(%[p]), %[sum]\n"
		"	adcq	8(%[p]), %[sum]\n"
		"	adcq	16(%[p]), %[sum]\n"
		"	adcq	24(%[p]), %[sum]\n"
		"	adcq	32(%[p]), %[sum]\n"
		"	adcq	40(%[p]), %[sum]\n"
		"	adcq	48(%[p]), %[sum]\n"
		"	adcq	56(%[p]), %[sum]\n"
		"	leaq	64(%[p]), %[p]\n"
		"	decq	%[n]\n"
		"	jnz	1b\n"
		"	adcq	$0, %[sum]\n"
		"	adcq	$0, %[sum]\n"
		: [p] "+r"(buf), [n] "+r"(blocks), [sum] "+r"(sum) : : "memory", "cc");
	return fold(sum);
}

#define CHECK_WORD(offset)				\
	"	movq	%[x], %[word]\n"		\
	"	xorq	" #offset "(%[p]), %[word]\n"	\
	"	orq	%[word], %[difference]\n"	\
	"	addq	%[step], %[x]\n"

/* Whether a page is the pattern, with one jump in 8 words; moves the pattern on. */
static bool page_fits(struct pattern *pattern, const void *page, u64 blocks)
{
	u64 difference = 0, word;

	__asm__ volatile(
		"1:\n"
		CHECK_WORD(0) CHECK_WORD(8) CHECK_WORD(16) CHECK_WORD(24)
		CHECK_WORD(32) CHECK_WORD(40) CHECK_WORD(48) CHECK_WORD(56)
		"	leaq	64(%[p]), %[p]\n"
		"	decq	%[n]\n"
		"	jnz	1b\n"
		: [p] "+r"(page), [n] "+r"(blocks), [x] "+r"(pattern->start), [word] "=&r"(word),
		  [difference] "+r"(difference)
		: [step] "r"(pattern->step) : "memory", "cc");
	return !difference;
}

s64 pattern_check(struct pattern pattern, const void *buf, u64 size)
{
	const u8 *p = buf;

	for (u64 at = 0; at < size; at += PAGE_SIZE) {
		u64 start = pattern.start;

		if (likely(page_fits(&pattern, p + at, min(size - at, PAGE_SIZE) / PATTERN_BLOCK)))
			continue;
		for (; get_unaligned_u64(p + at) == start; at += 8)
			start += pattern.step;
		return (s64)at;
	}
	return -1;
}
