/* The HPET's main counter (arch/time.c). */
#pragma once
#include "types.h"

void hpet_off(void);	/* stopped, legacy replacement off */
