/* files DIRECTORY...: everything below, in order of the names, a line each: "PATH MODE SIZE HEX" of files, with all their
 * bytes, and "PATH/ MODE" of directories.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void file(const char *path, const struct stat *st)
{
	unsigned char data[65536];
	int fd = open(path, O_RDONLY);
	ssize_t n;

	printf("%s %04o %lld ", path, st->st_mode & 07777, (long long)st->st_size);
	if (fd < 0)
		printf("unreadable");
	while (fd >= 0 && (n = read(fd, data, sizeof(data))) > 0)
		for (ssize_t i = 0; i < n; i++)
			printf("%02x", data[i]);
	printf("\n");
	close(fd);
}

static void below(const char *path)
{
	struct dirent **entries;
	struct stat st;
	int n;

	if (lstat(path, &st) < 0) {
		printf("%s is not there\n", path);
		return;
	}
	if (!S_ISDIR(st.st_mode)) {
		file(path, &st);
		return;
	}
	printf("%s/ %04o\n", path, st.st_mode & 07777);
	n = scandir(path, &entries, NULL, alphasort);
	for (int i = 0; i < n; i++) {
		char name[4096];

		if (strcmp(entries[i]->d_name, ".") && strcmp(entries[i]->d_name, "..")) {
			snprintf(name, sizeof(name), "%s/%s", path, entries[i]->d_name);
			below(name);
		}
		free(entries[i]);
	}
}

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		below(argv[i]);
	return 0;
}
