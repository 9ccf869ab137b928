/* KHO in the image of the next kernel: where its segments may lie, and the scratch array as one of them.
 *
 * Everything that is copied at the jump, or used before the next kernel knows what was preserved, has to lie in
 * scratch.
 */
#define pr_fmt(fmt) "KHO: " fmt
#include "kho_internal.h"
#include "errno.h"
#include "kexec.h"
#include "test_kho.h"

#define ARRAY_ALIGN	(64 * KIB)

int kho_fill_kimage(struct kimage *image)
{
	struct kexec_buf kbuf = {
		.image = image,
		.buffer = test_scratch_break(),	/* break: kho_scratch otherwise */
		.bufsz = kho_scratch_cnt * sizeof(*kho_scratch),
		.memsz = PAGE_ALIGN(kho_scratch_cnt * sizeof(*kho_scratch)),
		.buf_align = ARRAY_ALIGN,
		.buf_min = 0,
		.buf_max = ~0UL,
	};
	int err;

	if (!kho_enable || !kho_out.fdt)
		return 0;
	image->fdt = virt_to_phys(kho_out.fdt);
	err = kexec_add_buffer(&kbuf);
	if (err)
		return err;
	image->scratch = &image->segment[image->nr_segments - 1];
	return 0;
}

int kho_locate_mem_hole(struct kexec_buf *kbuf)
{
	if (!kho_enable)
		return 1;
	for (unsigned int i = 0; i < kho_scratch_cnt; i++)
		if (!kexec_locate_hole(kbuf, kho_scratch[i].addr, kho_scratch[i].addr + kho_scratch[i].size))
			return 0;
	return -EADDRNOTAVAIL;
}
