/* The educational device of QEMU, 1234:11e8 (docs/specs/edu): a factorial, a DMA engine, an interrupt. The kernel has no
 * use for it but to try out what drivers are made of: `edu_test` on the command line does, once for each.
 */
#define pr_fmt(fmt) "edu: " fmt
#include "pci.h"
#include "arch.h"
#include "cpu.h"
#include "breakage.h"
#include "errno.h"
#include "init.h"
#include "page.h"
#include "printk.h"
#include "string.h"

#define EDU_ID		0x00
#define EDU_LIVENESS	0x04
#define EDU_FACTORIAL	0x08
#define EDU_STATUS	0x20
#define  EDU_COMPUTING		0x01
#define  EDU_FACTORIAL_IRQ	0x80
#define EDU_IRQ		0x24
#define EDU_RAISE	0x60
#define EDU_ACK		0x64
#define EDU_SOURCE	0x80
#define EDU_TARGET	0x88
#define EDU_COUNT	0x90
#define EDU_DMA		0x98
#define  EDU_DMA_START		1
#define  EDU_DMA_TO_MEMORY	2
#define  EDU_DMA_IRQ		4
#define EDU_BUFFER	0x40000
#define EDU_ADDRESSES	(1UL << 28)

#define TEST_IOVA	0x400000UL
#define TEST_SIZE	1024U

struct edu {
	volatile u8 *registers;
	u32 interrupts, bits;
};

static bool test_wanted;

static int edu_test_param(const char *value)
{
	(void)value;
	test_wanted = true;
	return 0;
}
kernel_param("edu_test", edu_test_param);

static void edu_interrupt(struct pci_dev *dev, void *data)
{
	struct edu *e = data;
	u32 bits = readl(e->registers + EDU_IRQ);

	(void)dev;
	e->bits |= bits;
	writel(bits, e->registers + EDU_ACK);
	WRITE_ONCE(e->interrupts, e->interrupts + 1);
}

/* A second at most. */
static bool interrupted(struct edu *e, u32 times, u32 bits)
{
	for (unsigned int i = 0; i < 10000 && READ_ONCE(e->interrupts) < times; i++)
		udelay(100);
	udelay(100);			/* for one too many */
	return READ_ONCE(e->interrupts) == times && READ_ONCE(e->bits) == bits;
}

static bool idle(struct edu *e, u32 reg, u32 mask)
{
	for (unsigned int i = 0; i < 10000; i++) {
		if (!(readl(e->registers + reg) & mask))
			return true;
		udelay(100);
	}
	return false;
}

static bool test_factorial(struct edu *e)
{
	writel(0x5a5a1234, e->registers + EDU_LIVENESS);
	writel(10, e->registers + EDU_FACTORIAL);
	return idle(e, EDU_STATUS, EDU_COMPUTING) && readl(e->registers + EDU_FACTORIAL) == 3628800 &&
		readl(e->registers + EDU_LIVENESS) == ~0x5a5a1234U;
}

static void start_dma(struct edu *e, u64 from, u64 to, u32 how, u32 size)
{
	writel((u32)from, e->registers + EDU_SOURCE);
	writel((u32)to, e->registers + EDU_TARGET);
	writel(size, e->registers + EDU_COUNT);
	writel(how | EDU_DMA_START, e->registers + EDU_DMA);
}

/* Out of the first half of the page, back into the second. */
static bool move(struct edu *e, u8 *page, u64 bus)
{
	for (u32 i = 0; i < TEST_SIZE; i++)
		page[i] = (u8)(i * 7 + 3);
	memset(page + PAGE_SIZE / 2, 0, TEST_SIZE);
	start_dma(e, bus, EDU_BUFFER, 0, TEST_SIZE);
	if (!idle(e, EDU_DMA, EDU_DMA_START))
		return false;
	start_dma(e, EDU_BUFFER, bus + PAGE_SIZE / 2, EDU_DMA_TO_MEMORY, TEST_SIZE);
	return idle(e, EDU_DMA, EDU_DMA_START) && !memcmp(page, page + PAGE_SIZE / 2, TEST_SIZE);
}

static bool test_dma(struct edu *e, struct pci_dev *dev)
{
	struct iommu_domain *d = iommu_domain_alloc();
	u8 *page = get_zeroed_page();
	bool ok = false;

	if (!page)
		goto out;
	if (IS_ERR(d)) {
		/* nothing is remapped: the page must be in reach as it is */
		ok = virt_to_phys(page) < EDU_ADDRESSES && move(e, page, virt_to_phys(page));
		goto out;
	}
	if (iommu_map(d, TEST_IOVA, virt_to_phys(page), PAGE_SIZE, IOMMU_READ | IOMMU_WRITE))
		goto out;
	if (!iommu_attach(d, dev)) {
		ok = move(e, page, TEST_IOVA);
		iommu_unmap(d, TEST_IOVA, PAGE_SIZE);
		ok = ok && !move(e, page, TEST_IOVA);	/* nothing comes back */
		iommu_detach(dev);
	}
out:
	if (!IS_ERR(d))
		iommu_domain_free(d);
	free_page(page);
	return ok;
}

/* One raised by hand, one by a computation, one by a transfer (to nowhere: it moves nothing). */
static bool test_interrupts(struct edu *e)
{
	e->interrupts = e->bits = 0;
	writel(0x10, e->registers + EDU_RAISE);
	if (!interrupted(e, 1, 0x10))
		return false;
	writel(EDU_FACTORIAL_IRQ, e->registers + EDU_STATUS);
	writel(5, e->registers + EDU_FACTORIAL);
	if (!interrupted(e, 2, 0x11))
		return false;
	writel(0, e->registers + EDU_STATUS);
	start_dma(e, 0, EDU_BUFFER, EDU_DMA_IRQ, TEST_SIZE);
	return interrupted(e, 3, 0x111);
}

static bool test_intx(struct edu *e, struct pci_dev *dev)
{
	bool ok = !pci_request_intx(dev, edu_interrupt, e) && test_interrupts(e);

	pci_free_irq(dev);
	return ok;
}

static bool test_msi(struct edu *e, struct pci_dev *dev)
{
	bool ok = !pci_request_msi(dev, edu_interrupt, e) && test_interrupts(e);

	pci_free_irq(dev);
	return ok;
}

static const char *result(bool ok) { return ok ? "ok" : "FAILED"; }

static void self_test(struct edu *e, struct pci_dev *dev)
{
	pci_set_master(dev, true);
	pr_info(PCI_NAME " factorial %s\n", PCI_NAME_ARGS(dev), result(test_factorial(e)));
	pr_info(PCI_NAME " DMA %s\n", PCI_NAME_ARGS(dev), result(test_dma(e, dev)));
	pr_info(PCI_NAME " INTx %s\n", PCI_NAME_ARGS(dev), result(test_intx(e, dev)));
	pr_info(PCI_NAME " MSI %s\n", PCI_NAME_ARGS(dev), result(test_msi(e, dev)));
	pci_set_master(dev, false);
}

static int edu_probe(struct pci_dev *dev)
{
	struct edu *e = kzalloc(sizeof(*e), GFP_KERNEL);

	if (!e)
		return -ENOMEM;
	pci_enable(dev);
	e->registers = pci_map_bar(dev, 0);
	if (!e->registers || (readl(e->registers + EDU_ID) & 0xff) != 0xed) {
		kfree(e);
		return -EIO;
	}
	dev->driver_data = e;
	pr_info(PCI_NAME " version %u.%u\n", PCI_NAME_ARGS(dev), readl(e->registers + EDU_ID) >> 24,
		readl(e->registers + EDU_ID) >> 16 & 0xff);
	if (test_wanted)
		self_test(e, dev);
	return 0;
}

/* break: it writes to a page while nobody knows any more that it does. */
static void run_on(struct edu *e, struct pci_dev *dev)
{
	struct iommu_domain *d = iommu_domain_alloc();
	u8 *page = get_zeroed_page();

	if (IS_ERR(d) || !page || iommu_map(d, TEST_IOVA, virt_to_phys(page), PAGE_SIZE, IOMMU_READ | IOMMU_WRITE) ||
	    iommu_attach(d, dev))
		return;
	pci_set_master(dev, true);
	start_dma(e, EDU_BUFFER, TEST_IOVA, EDU_DMA_TO_MEMORY, PAGE_SIZE);
}

/* Nothing it computes or moves may end, or raise anything, in the next kernel. */
static void edu_shutdown(struct pci_dev *dev)
{
	struct edu *e = dev->driver_data;

	writel(0, e->registers + EDU_STATUS);
	idle(e, EDU_DMA, EDU_DMA_START);
	idle(e, EDU_STATUS, EDU_COMPUTING);
	writel(~0U, e->registers + EDU_ACK);
	if (breaks("bus-master", NULL))
		run_on(e, dev);
}

static void edu_remove(struct pci_dev *dev)
{
	edu_shutdown(dev);
	kfree(dev->driver_data);
}

static const struct pci_id ids[] = { { 0x1234, 0x11e8 }, { 0, 0 } };
static struct pci_driver edu_driver = {
	.name = "edu", .ids = ids, .probe = edu_probe, .remove = edu_remove, .shutdown = edu_shutdown,
};

static int edu_init(void)
{
	return pci_register_driver(&edu_driver);
}
device_initcall(edu_init);
