/*
 * luo.c - the calls of the Live Update Orchestrator (luo.h)
 */
#include "luo.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/liveupdate.h>
#include <string.h>
#include <sys/ioctl.h>

int luo_open(void)
{
	return open(LUO_DEVICE, O_RDWR | O_CLOEXEC);
}

int luo_create(int device, const char *name)
{
	struct liveupdate_ioctl_create_session call = { .size = sizeof(call) };

	if (strlen(name) >= sizeof(call.name)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	memcpy(call.name, name, strlen(name));
	return ioctl(device, LIVEUPDATE_IOCTL_CREATE_SESSION, &call) < 0 ? -1 : call.fd;
}

int luo_retrieve(int device, const char *name)
{
	struct liveupdate_ioctl_retrieve_session call = { .size = sizeof(call) };

	if (strlen(name) >= sizeof(call.name)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	memcpy(call.name, name, strlen(name));
	return ioctl(device, LIVEUPDATE_IOCTL_RETRIEVE_SESSION, &call) < 0 ? -1 : call.fd;
}

int luo_preserve(int session, int fd, uint64_t token)
{
	struct liveupdate_session_preserve_fd call = { .size = sizeof(call), .fd = fd, .token = token };

	return ioctl(session, LIVEUPDATE_SESSION_PRESERVE_FD, &call);
}

int luo_retrieve_fd(int session, uint64_t token)
{
	struct liveupdate_session_retrieve_fd call = { .size = sizeof(call), .token = token };

	return ioctl(session, LIVEUPDATE_SESSION_RETRIEVE_FD, &call) < 0 ? -1 : call.fd;
}

int luo_finish(int session)
{
	struct liveupdate_session_finish call = { .size = sizeof(call) };

	return ioctl(session, LIVEUPDATE_SESSION_FINISH, &call);
}
