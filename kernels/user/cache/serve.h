/*
 * serve.h - the cache's service, and how the others find it
 */
#ifndef LUEMU_CACHE_SERVE_H
#define LUEMU_CACHE_SERVE_H

#include <stdint.h>

#define SOCKET_PATH	"/tmp/cache.sock"
#define SOCKET_VARIABLE	"CACHE_SOCKET"		/* another path, for tests */

/* Connect to the service; -1 with errno. */
int serve_connect(void);
/*
 * Serve until told to stop (SIGTERM). With index and store those of another service, or with -1 new ones of
 * `size` bytes. What goes wrong is said on stderr; the status to exit with.
 */
int serve(uint64_t size, int index_fd, int store_fd);

#endif
