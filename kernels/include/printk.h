/* Messages to the console (kernel/printk.c), and formatted strings (lib/vsprintf.c).
 *
 * A message begins with a level; without one it has the default level 4. Messages less urgent than `loglevel=`
 * are not printed. There are no time stamps: the same images print the same text on any machine.
 * Formats: %d %u %x %X %o %c %s %p %% with flags, width, precision and h hh l ll z; %pS is a code address as
 * symbol-free "0x…" text that the host can resolve, %pe an error pointer's number.
 */
#pragma once
#include "types.h"

#define KERN_EMERG	"\0010"
#define KERN_ALERT	"\0011"
#define KERN_CRIT	"\0012"
#define KERN_ERR	"\0013"
#define KERN_WARNING	"\0014"
#define KERN_NOTICE	"\0015"
#define KERN_INFO	"\0016"
#define KERN_DEBUG	"\0017"
#define KERN_CONT	"\001c"	/* goes on in the line before */

/* Return how many bytes were shown. */
int printk(const char *fmt, ...) __printf(1, 2);
int vprintk(const char *fmt, va_list args);

#ifndef pr_fmt
#define pr_fmt(fmt) fmt
#endif
#define pr_emerg(fmt, ...)	printk(KERN_EMERG pr_fmt(fmt), ##__VA_ARGS__)
#define pr_crit(fmt, ...)	printk(KERN_CRIT pr_fmt(fmt), ##__VA_ARGS__)
#define pr_err(fmt, ...)	printk(KERN_ERR pr_fmt(fmt), ##__VA_ARGS__)
#define pr_warn(fmt, ...)	printk(KERN_WARNING pr_fmt(fmt), ##__VA_ARGS__)
#define pr_notice(fmt, ...)	printk(KERN_NOTICE pr_fmt(fmt), ##__VA_ARGS__)
#define pr_info(fmt, ...)	printk(KERN_INFO pr_fmt(fmt), ##__VA_ARGS__)
#define pr_debug(fmt, ...)	printk(KERN_DEBUG pr_fmt(fmt), ##__VA_ARGS__)

/* Return the length that the whole text has, like the C library's. */
int snprintf(char *buf, size_t size, const char *fmt, ...) __printf(3, 4);
int vsnprintf(char *buf, size_t size, const char *fmt, va_list args);
/* Return the length written, without the terminator. */
int scnprintf(char *buf, size_t size, const char *fmt, ...) __printf(3, 4);

/* Text that the console did not take yet is written out; used before a jump or halt. */
void printk_flush(void);
