/* init for a Linux with the e1000 driver: brings the card up with jumbo frames and sends back what arrives, until a
 * given number of frames has come; then prints what the driver counted. A frame that is echoed goes from its
 * destination to its source. The command line has frames=N. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/if_packet.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define TYPE 0x88b5
#define MTU 9202

static void end(const char *why) {
	printf("%s: %s\n", why, strerror(errno));
	fflush(stdout);
	sync();
	reboot(RB_POWER_OFF);
}

static long number(const char *path, const char *after) {
	static char text[4096];
	int fd = open(path, O_RDONLY);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
	if (n < 0)
		end(path);
	close(fd);
	text[n] = 0;
	const char *at = strstr(text, after);
	return at ? strtol(at + strlen(after), NULL, 0) : -1;
}

static void request(int s, unsigned long what, struct ifreq *r, const char *name) {
	strcpy(r->ifr_name, "eth0");
	if (ioctl(s, what, r))
		end(name);
}

/* The driver's own tests of registers, EEPROM, interrupt, loopback and link: takes the interface down for it. */
static void self_test(int s) {
	struct ifreq r = {0};
	static union { struct ethtool_test test; char room[sizeof(struct ethtool_test) + 64 * 8]; } t;
	t.test.cmd = ETHTOOL_TEST;
	t.test.flags = ETH_TEST_FL_OFFLINE;
	r.ifr_data = (void *)&t;
	request(s, SIOCETHTOOL, &r, "self-test");
	printf("net: self-test %s:", t.test.flags & ETH_TEST_FL_FAILED ? "failed" : "passed");
	for (unsigned i = 0; i < t.test.len; i++)
		printf(" %llu", (unsigned long long)t.test.data[i]);
	printf("\n");
}

int main(void) {
	setvbuf(stdout, NULL, _IOLBF, 0);
	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	long wanted = number("/proc/cmdline", "frames=");
	printf("net: started\n");

	int s = socket(AF_PACKET, SOCK_RAW, htons(TYPE));
	if (s < 0)
		end("socket");
	int room = 16 << 20;
	setsockopt(s, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room);
	struct ifreq r = {0};
	request(s, SIOCGIFHWADDR, &r, "address");
	unsigned char *mac = (unsigned char *)r.ifr_hwaddr.sa_data;
	printf("net: %02x:%02x:%02x:%02x:%02x:%02x\n", mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]);
	r.ifr_mtu = MTU;
	request(s, SIOCSIFMTU, &r, "MTU");
	request(s, SIOCGIFINDEX, &r, "index");
	struct sockaddr_ll at = {.sll_family = AF_PACKET, .sll_protocol = htons(TYPE), .sll_ifindex = r.ifr_ifindex};
	if (bind(s, (struct sockaddr *)&at, sizeof at))
		end("bind");
	request(s, SIOCGIFFLAGS, &r, "flags");
	r.ifr_flags |= IFF_UP;
	request(s, SIOCSIFFLAGS, &r, "up");
	self_test(s);
	while (number("/sys/class/net/eth0/carrier", "") != 1)
		usleep(10000);
	printf("net: up\n");

	static unsigned char frame[16384];
	long got = 0, bytes = 0;
	while (got < wanted) {
		ssize_t n = recv(s, frame, sizeof frame, 0);
		if (n < 0) {
			if (errno == ENETDOWN)   /* of the self-test */
				continue;
			end("receive");
		}
		unsigned char target[6];
		memcpy(target, frame, 6);
		memcpy(frame, frame + 6, 6);
		memcpy(frame + 6, target, 6);
		while (send(s, frame, (size_t)n, 0) != n)
			if (errno != ENOBUFS)
				end("send");
		got++;
		bytes += n;
	}
	printf("net: %ld frames, %ld bytes\n", got, bytes);
	sleep(3);   /* the driver reads its counters every two seconds */
	static const char *const names[] = {
			"rx_packets", "tx_packets", "rx_bytes", "tx_bytes", "rx_errors", "rx_dropped", "rx_missed_errors",
			"tx_errors", "tx_dropped", "collisions"};
	for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++) {
		char path[64];
		snprintf(path, sizeof path, "/sys/class/net/eth0/statistics/%s", names[i]);
		printf("net: %s %ld\n", names[i], number(path, ""));
	}
	printf("net: done\n");
	fflush(stdout);
	reboot(RB_POWER_OFF);
	return 0;
}
