/*
 * record.c - write records to the host (the format is described in record.h)
 *
 * A record is put together in memory and goes out in one piece. Needs no more of the kernel than write().
 */
#include "record.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

static void put_u32(unsigned char *p, uint32_t value)
{
	for (int i = 0; i < 4; i++)
		p[i] = (unsigned char)(value >> (8 * i));
}

void record_begin(struct record *record, enum record_type type)
{
	record->length = 0;
	record->bytes[0] = 'L';
	record->bytes[1] = 'U';
	record->bytes[2] = (unsigned char)type;
	record->bytes[3] = RECORD_VERSION;
}

void record_bytes(struct record *record, const void *bytes, size_t length)
{
	if (length > RECORD_PAYLOAD_MAX - record->length)
		length = RECORD_PAYLOAD_MAX - record->length;
	memcpy(record->bytes + RECORD_HEADER_SIZE + record->length, bytes, length);
	record->length += length;
}

void record_field(struct record *record, const char *text)
{
	record_bytes(record, text, strlen(text) + 1);
}

/* Decimal, into the end of `buffer`; returns where it begins. */
static const char *decimal(unsigned int number, char buffer[12])
{
	char *p = buffer + 11;

	*p = '\0';
	do {
		*--p = (char)('0' + number % 10);
		number /= 10;
	} while (number != 0);
	return p;
}

void record_number(struct record *record, unsigned int number)
{
	char buffer[12];

	record_field(record, decimal(number, buffer));
}

int record_send(struct record *record)
{
	size_t total = RECORD_HEADER_SIZE + record->length;

	put_u32(record->bytes + 4, record->sequence);
	put_u32(record->bytes + 8, (uint32_t)record->length);
	for (size_t done = 0; done < total;) {
		ssize_t n = write(record->fd, record->bytes + done, total - done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -1;
		done += (size_t)n;
	}
	record->sequence++;
	return 0;
}

int record_failure(struct record *record, enum record_type type, const char *tried, int error)
{
	record_begin(record, type);
	record_field(record, tried);
	record_number(record, (unsigned int)error);
	record_field(record, errno_name(error));
	record_field(record, error == 0 ? "" : strerror(error));
	return record_send(record);
}

const char *errno_name(int error)
{
#define NAME(e) { e, #e }
	static const struct {
		int number;
		const char *name;
	} names[] = {
		NAME(EPERM), NAME(ENOENT), NAME(ESRCH), NAME(EINTR), NAME(EIO), NAME(ENXIO), NAME(E2BIG),
		NAME(ENOEXEC), NAME(EBADF), NAME(ECHILD), NAME(EAGAIN), NAME(ENOMEM), NAME(EACCES), NAME(EFAULT),
		NAME(ENOTBLK), NAME(EBUSY), NAME(EEXIST), NAME(EXDEV), NAME(ENODEV), NAME(ENOTDIR), NAME(EISDIR),
		NAME(EINVAL), NAME(ENFILE), NAME(EMFILE), NAME(ENOTTY), NAME(ETXTBSY), NAME(EFBIG), NAME(ENOSPC),
		NAME(ESPIPE), NAME(EROFS), NAME(EMLINK), NAME(EPIPE), NAME(EDOM), NAME(ERANGE), NAME(EDEADLK),
		NAME(ENAMETOOLONG), NAME(ENOLCK), NAME(ENOSYS), NAME(ENOTEMPTY), NAME(ELOOP), NAME(ENODATA),
		NAME(EPROTO), NAME(EBADMSG), NAME(EOVERFLOW), NAME(ELIBBAD), NAME(EOPNOTSUPP), NAME(EADDRNOTAVAIL),
		NAME(ETIMEDOUT), NAME(EALREADY), NAME(EINPROGRESS), NAME(ESTALE), NAME(ECANCELED), NAME(ENOKEY),
		NAME(EKEYREJECTED),
	};
#undef NAME
	static char buffer[12];

	if (error == 0)
		return "";
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (names[i].number == error)
			return names[i].name;
	return decimal((unsigned int)error, buffer);
}
