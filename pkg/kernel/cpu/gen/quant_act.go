package main

// Quantisation of activations to blocks of bytes.

// quantize writes quantizeRow, which turns blocks of 32 float32 into activation blocks: bytes rounded from
// x·127/max|x|, the scale max|x|/127, and the sums that the offsets and minima of weights are multiplied by.
func (a *asm) quantize() {
	a.fn("quantizeRow", 32, "func quantizeRow(dst *byte, stride int, x *float32, blocks int)")
	a.f("MOVQ dst+0(FP), DI")
	a.f("MOVQ stride+8(FP), DX")
	a.f("MOVQ x+16(FP), SI")
	a.f("MOVQ blocks+24(FP), CX")
	a.constant(0x7fffffff, 31)
	a.f("MOVL $0x42fe0000, AX") // 127
	a.f("VMOVD AX, X30")
	a.f("MOVL $0x%08x, AX", 0x0da24260) // 1e-30: a block with a smaller maximum is zero
	a.f("VMOVD AX, X29")
	a.label("loop")
	a.f("VMOVUPS (SI), Z0")
	a.f("VMOVUPS 64(SI), Z1")
	a.f("VPANDD Z31, Z0, Z2")
	a.f("VPANDD Z31, Z1, Z3")
	a.f("VPMAXUD Z3, Z2, Z2")
	a.f("VEXTRACTI64X4 $1, Z2, Y3")
	a.f("VPMAXUD Y3, Y2, Y2")
	a.f("VEXTRACTI128 $1, Y2, X3")
	a.f("VPMAXUD X3, X2, X2")
	a.f("VPSHUFD $0x4E, X2, X3")
	a.f("VPMAXUD X3, X2, X2")
	a.f("VPSHUFD $0xB1, X2, X3")
	a.f("VPMAXUD X3, X2, X2")
	a.f("VCMPSS $5, X29, X2, K1") // max|x| >= 1e-30, or NaN, which stays NaN
	a.f("VDIVSS.Z X30, X2, K1, X4")
	a.f("VDIVSS.Z X2, X30, K1, X5")
	a.f("VBROADCASTSS X5, Z5")
	a.f("VMULPS Z5, Z0, Z0")
	a.f("VMULPS Z5, Z1, Z1")
	a.f("VCVTPS2DQ Z0, Z0")
	a.f("VCVTPS2DQ Z1, Z1")
	a.f("VPMOVSDB Z0, (DI)")
	a.f("VPMOVSDB Z1, 16(DI)")
	a.f("VEXTRACTI64X4 $1, Z0, Y2")
	a.f("VEXTRACTI64X4 $1, Z1, Y3")
	a.f("VPADDD Y2, Y0, Y2")
	a.f("VPADDD Y3, Y1, Y3")
	a.f("VPHADDD Y3, Y2, Y2")
	a.f("VPHADDD Y2, Y2, Y2")
	a.f("VEXTRACTI128 $1, Y2, X3")
	a.f("VPADDD X3, X2, X2") // the sums of the first and the last 16
	a.f("VMOVD X2, R8")
	a.f("VPEXTRD $1, X2, R9")
	a.header("X4", 0)
	a.f("ADDQ $128, SI")
	a.f("ADDQ DX, DI")
	a.f("DECQ CX")
	a.f("JNZ loop")
	a.end()
}

// header writes the header of an activation block, at bytes further than usual. The scale is in a register, and the
// sums of the first and the last 16 bytes are in R8 and R9.
func (a *asm) header(scale string, at int) {
	a.f("LEAL (R8)(R9*1), AX")
	a.f("VCVTSI2SSL AX, %s, X7", scale)
	a.f("VMULSS %s, X7, X7", scale)
	a.f("VMOVSS %s, %d(DI)", scale, at+actScale)
	a.f("VMOVSS X7, %d(DI)", at+actSum)
	a.f("NEGL AX")
	a.f("SHLL $3, AX")
	a.f("MOVL AX, %d(DI)", at+actLess8)
	a.f("SHLL $1, AX")
	a.f("MOVL AX, %d(DI)", at+actLess16)
	a.f("SHLL $3, AX")
	a.f("MOVL AX, %d(DI)", at+actLess128)
	for i, r := range []string{"R8", "R9"} {
		a.f("NEGL %s", r)
		a.f("SHLL $5, %s", r)
		a.f("MOVL %s, %d(DI)", r, at+actLow+4*i)
	}
}
