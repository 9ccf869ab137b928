/* A program that leaves a child which is in user mode whenever it may, until the kernel is replaced. */
#include <unistd.h>

int main(void)
{
	if (!fork())
		while (1)
			getppid();
	return 0;
}
