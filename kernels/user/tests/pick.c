/* pick 0 COMMAND... , 1 COMMAND... , 2 COMMAND...: becomes the command of this kernel's generation, or exits with 0 if
 * there is none for it. init runs the same programs in every kernel; what a test wants to differ, it gives to this one.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static long generation(void)
{
	char text[8192];
	FILE *f = fopen("/proc/cmdline", "r");
	size_t n = f ? fread(text, 1, sizeof(text) - 1, f) : 0;
	const char *found;

	text[n] = '\0';
	found = strstr(text, "luemu.generation=");
	return found ? strtol(found + strlen("luemu.generation="), NULL, 10) : -1;
}

int main(int argc, char **argv)
{
	long wanted = generation();

	for (int i = 1; i < argc; i++) {
		int end = i;

		while (end < argc && strcmp(argv[end], ","))
			end++;
		if (atol(argv[i]) == wanted && i + 1 < end) {
			argv[end] = NULL;
			execvp(argv[i + 1], argv + i + 1);
			perror(argv[i + 1]);
			return 127;
		}
		i = end;
	}
	return 0;
}
