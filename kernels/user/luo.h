/*
 * luo.h - the calls of the Live Update Orchestrator, as an agent makes them
 *
 * Each returns what it is asked for or -1 with errno, like a system call.
 */
#ifndef LUEMU_LUO_H
#define LUEMU_LUO_H

#include <stdint.h>

#define LUO_DEVICE	"/dev/liveupdate"

int luo_open(void);			/* the device; one opener at a time: EBUSY */
int luo_create(int device, const char *name);
int luo_retrieve(int device, const char *name);
int luo_preserve(int session, int fd, uint64_t token);
int luo_retrieve_fd(int session, uint64_t token);
int luo_finish(int session);

#endif
