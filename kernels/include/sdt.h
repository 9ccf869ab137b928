/* Static probes in SystemTap's SDT form, version 3: a one-byte nop, and a note in .note.stapsdt that says where it
 * is and where its arguments are at that moment. Unobserved they cost the nop. The note is not loaded.
 *
 *	PROBE(kho, populate);  PROBE2(kexec, jump, image, entry);
 *
 * Arguments are up to six integers or pointers, each 8 bytes.
 */
#pragma once
#include "types.h"

#define SDT_NOTE(provider, name, args)							\
	"990:	nop\n"									\
	"	.pushsection .note.stapsdt, \"\", @note\n"				\
	"	.balign 4\n"								\
	"	.4byte 992f - 991f, 994f - 993f, 3\n"					\
	"991:	.asciz \"stapsdt\"\n"							\
	"992:	.balign 4\n"								\
	"993:	.8byte 990b\n"								\
	"	.8byte _stapsdt_base\n"							\
	"	.8byte 0\n"								\
	"	.asciz \"" #provider "\"\n"						\
	"	.asciz \"" #name "\"\n"							\
	"	.asciz \"" args "\"\n"							\
	"994:	.balign 4\n"								\
	"	.popsection\n"

#define SDT_ARG(x) "nor"((u64)(x))
#define PROBE(p, n)		__asm__ volatile(SDT_NOTE(p, n, "") ::: "memory")
#define PROBE1(p, n, a)		__asm__ volatile(SDT_NOTE(p, n, "8@%0") :: SDT_ARG(a) : "memory")
#define PROBE2(p, n, a, b)	__asm__ volatile(SDT_NOTE(p, n, "8@%0 8@%1") :: SDT_ARG(a), SDT_ARG(b) : "memory")
#define PROBE3(p, n, a, b, c)	__asm__ volatile(SDT_NOTE(p, n, "8@%0 8@%1 8@%2")	\
	:: SDT_ARG(a), SDT_ARG(b), SDT_ARG(c) : "memory")
#define PROBE4(p, n, a, b, c, d) __asm__ volatile(SDT_NOTE(p, n, "8@%0 8@%1 8@%2 8@%3")	\
	:: SDT_ARG(a), SDT_ARG(b), SDT_ARG(c), SDT_ARG(d) : "memory")
