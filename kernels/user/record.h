/*
 * record.h - what init tells the host, as records on the second serial port
 *
 * The port carries nothing else, so programs' output arrives byte for byte, whatever the kernels print on the
 * console. emu/initproto.py reads what record.c writes. Integers are little-endian.
 *
 *	offset  size
 *	     0     2  "LU"
 *	     2     1  type
 *	     3     1  version of this format, 1
 *	     4     4  sequence number: 0 for the HELLO of each boot, then one more each
 *	     8     4  length of the payload, at most RECORD_PAYLOAD_MAX
 *	    12        payload: text fields, each ended by a NUL byte; after those, in OUTPUT only, raw bytes
 *
 *	HELLO    generation, kernel release, kernel version
 *	START    program, when ("before", "after", "interactive"), argv...
 *	OUTPUT   program, then the bytes it wrote to its standard output or error
 *	EXIT     program, exit status or "-", signal number or "-"
 *	WARNING  what was tried, errno, its name, what that means
 *	ERROR    the same; init can not go on and turns the machine off
 *	KEXEC    generation that is started, kernel, initrd or "-", command line
 *	DONE     generation; init turns the machine off
 *
 * "program" counts the programs of one boot from 0. Output may follow EXIT: of children left behind.
 */
#ifndef LUEMU_RECORD_H
#define LUEMU_RECORD_H

#include <stddef.h>
#include <stdint.h>

#define RECORD_VERSION		1
#define RECORD_HEADER_SIZE	12
#define RECORD_PAYLOAD_MAX	262144

enum record_type {
	RECORD_HELLO = 1,
	RECORD_START = 2,
	RECORD_OUTPUT = 3,
	RECORD_EXIT = 4,
	RECORD_WARNING = 5,
	RECORD_ERROR = 6,
	RECORD_KEXEC = 7,
	RECORD_DONE = 8,
};

/* One record in the making, and the port it goes to. */
struct record {
	int fd;
	uint32_t sequence;
	size_t length;		/* of the payload so far */
	unsigned char bytes[RECORD_HEADER_SIZE + RECORD_PAYLOAD_MAX];
};

void record_begin(struct record *record, enum record_type type);
void record_field(struct record *record, const char *text);
void record_number(struct record *record, unsigned int number);
void record_bytes(struct record *record, const void *bytes, size_t length);
/* Write it out. Returns 0, or -1 with errno. A payload over the maximum was cut off. */
int record_send(struct record *record);

/* WARNING and ERROR: `tried` is what was tried, `error` the errno it gave. */
int record_failure(struct record *record, enum record_type type, const char *tried, int error);

/* "ENOENT" for 2, and so on; the number as text for one that has no name here. */
const char *errno_name(int error);

#endif
