/* xoshiro256** (Blackman and Vigna), seeded through splitmix64 by `seed=` and the number of the kernel in
 * its chain: another stream in every kernel, the same in every run.
 */
#include "random.h"
#include "init.h"
#include "string.h"
#include "workload.h"

static u64 seed = 1;
static u64 state[4];
static bool seeded;

static u64 splitmix(u64 *x)
{
	u64 z = *x += 0x9e3779b97f4a7c15UL;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9UL;
	z = (z ^ z >> 27) * 0x94d049bb133111ebUL;
	return z ^ z >> 31;
}

static void seed_state(void)
{
	u64 x = seed + ((u64)kernel_generation() << 32);

	for (unsigned int i = 0; i < ARRAY_SIZE(state); i++)
		state[i] = splitmix(&x);
	seeded = true;
}

static u64 rotate_left(u64 x, unsigned int n)
{
	return x << n | x >> (64 - n);
}

u64 get_random_u64(void)
{
	u64 result, t;

	if (unlikely(!seeded))
		seed_state();
	result = rotate_left(state[1] * 5, 7) * 9;
	t = state[1] << 17;
	state[2] ^= state[0];
	state[3] ^= state[1];
	state[1] ^= state[2];
	state[0] ^= state[3];
	state[2] ^= t;
	state[3] = rotate_left(state[3], 45);
	return result;
}

void get_random_bytes(void *buf, u64 size)
{
	u8 *p = buf;
	u64 v;

	for (; size >= 8; size -= 8, p += 8)
		put_unaligned_u64(get_random_u64(), p);
	if (size) {
		v = get_random_u64();
		memcpy(p, &v, size);
	}
}

static int set_seed(const char *value)
{
	return kstrtou64(value, 0, &seed);
}
early_param("seed", set_seed);
