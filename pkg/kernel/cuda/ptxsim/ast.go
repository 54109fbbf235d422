package ptxsim

// space is a state space.
type space uint8

const (
	spaceGeneric space = iota
	spaceGlobal
	spaceShared
	spaceLocal
	spaceConst
	spaceParam
)

var spaceNames = map[string]space{
	"global": spaceGlobal, "shared": spaceShared, "shared::cta": spaceShared, "local": spaceLocal,
	"const": spaceConst, "param": spaceParam,
}

// variable is a declared variable of a state space, or a parameter of a kernel.
type variable struct {
	name   string
	space  space
	typ    Type
	align  int
	size   int    // bytes; 0 if extern
	count  int    // elements; 0 for a scalar
	extern bool   // dynamic shared memory
	init   []byte // initial value of a global or constant, or nil
	line   int
	addr   uint64 // address, or offset within the space; set before the instructions are compiled
	placed bool
}

// register is a declared register that an instruction names.
type register struct {
	name string
	typ  Type
	slot int32 // index among the registers of a warp, or among its predicates
}

type operandKind uint8

const (
	operandRegister operandKind = iota + 1
	operandSpecial              // a special register, such as %tid.x
	operandInt
	operandFloat
	operandSymbol // the address of a variable, plus off
	operandMemory // [base+off]: base is a register, a variable, or absent
	operandVector
	operandLabel
	operandSink // _
)

// operand is an operand of a statement.
type operand struct {
	kind   operandKind
	reg    *register
	v      *variable
	name   string // of a label or a special register
	off    int64
	int    uint64
	float  float64
	single bool
	not    bool      // !p
	vec    []operand // elements of a vector
	pair   *operand  // q of p|q
}

// statement is an instruction.
type statement struct {
	line int
	text string
	op   string   // first part of the name
	mods []string // the other parts
	args []operand
	pred *register
	neg  bool
}

// function is a kernel.
type function struct {
	name   string
	line   int
	params []*variable
	vars   []*variable
	body   []*statement
	labels map[string]int // index of the statement after the label
	ntid   [3]int         // .reqntid, or zero
	maxtid int            // .maxntid, or zero
}

// source is a parsed module.
type source struct {
	target string
	vars   []*variable
	funcs  []*function
}
