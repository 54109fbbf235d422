#include "textflag.h"

// func pause(): some hundred nanoseconds that leave the core to its sibling
TEXT ·pause(SB), NOSPLIT, $0-0
	MOVL $4, CX
again:
	PAUSE
	DECL CX
	JNZ  again
	RET
