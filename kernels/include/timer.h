/* The periodic timer interrupt (arch/time.c). */
#pragma once

void timer_interrupt(void);
