/* The user interface of the Live Update Orchestrator, for programs that are compiled where the C library's kernel headers
 * are older than Linux 7.2. Written from the documentation of the interface; the numbers are its.
 */
#ifndef LUEMU_LINUX_LIVEUPDATE_H
#define LUEMU_LINUX_LIVEUPDATE_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define LIVEUPDATE_SESSION_NAME_LENGTH	64
#define LIVEUPDATE_IOCTL_TYPE		0xBA

/* of /dev/liveupdate */
#define LIVEUPDATE_IOCTL_CREATE_SESSION		_IO(LIVEUPDATE_IOCTL_TYPE, 0x00)
#define LIVEUPDATE_IOCTL_RETRIEVE_SESSION	_IO(LIVEUPDATE_IOCTL_TYPE, 0x01)
/* of a session */
#define LIVEUPDATE_SESSION_PRESERVE_FD		_IO(LIVEUPDATE_IOCTL_TYPE, 0x40)
#define LIVEUPDATE_SESSION_RETRIEVE_FD		_IO(LIVEUPDATE_IOCTL_TYPE, 0x41)
#define LIVEUPDATE_SESSION_FINISH		_IO(LIVEUPDATE_IOCTL_TYPE, 0x42)
#define LIVEUPDATE_SESSION_GET_NAME		_IO(LIVEUPDATE_IOCTL_TYPE, 0x43)

struct liveupdate_ioctl_create_session {
	__u32 size;
	__s32 fd;
	__u8 name[LIVEUPDATE_SESSION_NAME_LENGTH];
};

struct liveupdate_ioctl_retrieve_session {
	__u32 size;
	__s32 fd;
	__u8 name[LIVEUPDATE_SESSION_NAME_LENGTH];
};

struct liveupdate_session_preserve_fd {
	__u32 size;
	__s32 fd;
	__aligned_u64 token;
};

struct liveupdate_session_retrieve_fd {
	__u32 size;
	__s32 fd;
	__aligned_u64 token;
};

struct liveupdate_session_finish {
	__u32 size;
	__u32 reserved;
};

struct liveupdate_session_get_name {
	__u32 size;
	__u32 reserved;
	__u8 name[LIVEUPDATE_SESSION_NAME_LENGTH];
};

#endif
