package ptxsim

import (
	"encoding/binary"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Limits of a source. They bound what Load allocates for any input.
const (
	maxSource     = 16 << 20 // bytes of PTX
	maxStatements = 1 << 17  // instructions of a kernel
	maxNesting    = 16       // braces within a kernel
	maxArgs       = 16       // operands of an instruction, and elements of a vector
	maxParams     = 4096     // bytes of parameters, the limit of PTX
	maxVariable   = 1 << 26  // bytes of a variable
)

// registers are declared registers with one prefix, as in .reg .b32 %r<100>.
type registers struct {
	typ   Type
	count uint64
	used  map[uint64]*register
}

type scope struct {
	regs   map[string]*register
	ranges map[string]*registers
	vars   map[string]*variable
}

func newScope() *scope {
	return &scope{regs: map[string]*register{}, ranges: map[string]*registers{}, vars: map[string]*variable{}}
}

// parser reads a module. Registers and variables are resolved while it reads, because PTX declares them before use.
type parser struct {
	lex    lexer
	tok    token
	out    *source
	fn     *function
	scopes []*scope
	bytes  int // of all variables
}

func parse(text string) (*source, error) {
	if len(text) > maxSource {
		return nil, &SourceError{Line: 1, Text: fmt.Sprintf("source of %d bytes is over %d", len(text), maxSource)}
	}
	p := &parser{lex: lexer{src: text, line: 1}, out: &source{}, scopes: []*scope{newScope()}}
	if err := p.advance(); err != nil {
		return nil, err
	}
	for p.tok.kind != tokenEnd {
		if err := p.module(); err != nil {
			return nil, err
		}
	}
	if p.out.target == "" {
		return nil, p.errorf("module has no .target")
	}
	return p.out, nil
}

func (p *parser) errorf(format string, args ...any) error {
	return &SourceError{Line: p.tok.line, Text: fmt.Sprintf(format, args...)}
}

func (p *parser) advance() (err error) {
	p.tok, err = p.lex.next()
	return err
}

func (p *parser) punct(s string) bool { return p.tok.kind == tokenPunct && p.tok.text == s }

// eat passes a punctuation mark and reports whether it was there.
func (p *parser) eat(s string) (bool, error) {
	if !p.punct(s) {
		return false, nil
	}
	return true, p.advance()
}

func (p *parser) expect(s string) error {
	if ok, err := p.eat(s); ok || err != nil {
		return err
	}
	return p.errorf("found %q where %q belongs", p.tok.text, s)
}

func (p *parser) name() (string, error) {
	if p.tok.kind != tokenName {
		return "", p.errorf("found %q where a name belongs", p.tok.text)
	}
	s := p.tok.text
	return s, p.advance()
}

func (p *parser) integer() (uint64, error) {
	if p.tok.kind != tokenInt {
		return 0, p.errorf("found %q where an integer belongs", p.tok.text)
	}
	v := p.tok.int
	return v, p.advance()
}

// module reads one declaration at the level of the module.
func (p *parser) module() error {
	if p.tok.kind != tokenDirective {
		return p.errorf("found %q where a directive belongs", p.tok.text)
	}
	switch d := p.tok.text; d {
	case ".version":
		if err := p.advance(); err != nil {
			return err
		}
		if p.tok.kind != tokenFloat {
			return p.errorf("found %q where a version belongs", p.tok.text)
		}
		return p.advance()
	case ".target":
		return p.target()
	case ".address_size":
		if err := p.advance(); err != nil {
			return err
		}
		if n, err := p.integer(); err != nil {
			return err
		} else if n != 64 {
			return p.errorf("address size %d is not supported", n)
		}
		return nil
	case ".visible", ".weak":
		return p.advance()
	case ".file":
		return p.skipLine()
	case ".entry":
		return p.entry()
	case ".func":
		return p.errorf("functions that a kernel calls are not supported")
	case ".extern", ".global", ".const", ".shared":
		return p.variables()
	default:
		return p.errorf("directive %s is not supported", d)
	}
}

func (p *parser) target() error {
	for {
		if err := p.advance(); err != nil {
			return err
		}
		name, err := p.name()
		if err != nil {
			return err
		}
		if p.out.target == "" {
			p.out.target = name
		}
		if !p.punct(",") {
			return nil
		}
	}
}

// skipLine passes the tokens of the directive's line.
func (p *parser) skipLine() error {
	for line := p.tok.line; p.tok.kind != tokenEnd && p.tok.line == line; {
		if err := p.advance(); err != nil {
			return err
		}
	}
	return nil
}

func (p *parser) entry() error {
	if err := p.advance(); err != nil {
		return err
	}
	f := &function{line: p.tok.line, labels: map[string]int{}}
	var err error
	if f.name, err = p.name(); err != nil {
		return err
	}
	for _, other := range p.out.funcs {
		if other.name == f.name {
			return p.errorf("kernel %s is declared twice", f.name)
		}
	}
	p.fn = f
	p.scopes = append(p.scopes, newScope())
	if ok, err := p.eat("("); err != nil {
		return err
	} else if ok {
		if err := p.params(); err != nil {
			return err
		}
	}
	if err := p.performance(); err != nil {
		return err
	}
	if err := p.expect("{"); err != nil {
		return err
	}
	if err := p.body(); err != nil {
		return err
	}
	p.scopes = p.scopes[:1]
	p.fn = nil
	p.out.funcs = append(p.out.funcs, f)
	return nil
}

func (p *parser) params() error {
	offset := 0
	for {
		if ok, err := p.eat(")"); ok || err != nil {
			return err
		}
		if p.tok.text != ".param" {
			return p.errorf("found %q where .param belongs", p.tok.text)
		}
		v, err := p.variable(spaceParam)
		if err != nil {
			return err
		}
		offset = (offset + v.align - 1) / v.align * v.align
		v.addr, v.placed = uint64(offset), true
		if offset += v.size; offset > maxParams {
			return p.errorf("parameters are over %d bytes", maxParams)
		}
		p.fn.params = append(p.fn.params, v)
		if !p.punct(")") {
			if err := p.expect(","); err != nil {
				return err
			}
		}
	}
}

// performance reads the directives between the parameters and the body.
func (p *parser) performance() error {
	for p.tok.kind == tokenDirective {
		d := p.tok.text
		if err := p.advance(); err != nil {
			return err
		}
		n := [3]int{1, 1, 1}
		for i := 0; i < 3; i++ {
			v, err := p.integer()
			if err != nil {
				return err
			}
			if v == 0 || v > 1<<16 {
				return p.errorf("%s %d is out of range", d, v)
			}
			n[i] = int(v)
			if !p.punct(",") {
				break
			}
			if err := p.advance(); err != nil {
				return err
			}
		}
		switch d {
		case ".reqntid":
			p.fn.ntid = n
		case ".maxntid":
			p.fn.maxtid = n[0] * n[1] * n[2]
		case ".minnctapersm", ".maxnreg", ".maxnctapersm":
		default:
			return p.errorf("directive %s is not supported", d)
		}
	}
	return nil
}

// variables reads declarations of one space up to the semicolon.
func (p *parser) variables() error {
	extern := false
	if p.tok.text == ".extern" {
		extern = true
		if err := p.advance(); err != nil {
			return err
		}
	}
	s, ok := spaceNames[strings.TrimPrefix(p.tok.text, ".")]
	if !ok || p.tok.kind != tokenDirective {
		return p.errorf("found %q where a state space belongs", p.tok.text)
	}
	if extern && s != spaceShared {
		return p.errorf("only shared variables may be extern")
	}
	v, err := p.variable(s)
	if err != nil {
		return err
	}
	if v.extern != extern {
		return p.errorf("variable %s: only extern shared variables have no size, and they have none", v.name)
	}
	if p.fn != nil {
		if s != spaceShared && s != spaceLocal {
			return p.errorf("variable %s: its space belongs outside of a kernel", v.name)
		}
		p.fn.vars = append(p.fn.vars, v)
	} else {
		p.out.vars = append(p.out.vars, v)
	}
	return p.expect(";")
}

// variable reads a declaration after its space, and declares it in the innermost scope.
func (p *parser) variable(s space) (*variable, error) {
	v := &variable{space: s, line: p.tok.line}
	if err := p.advance(); err != nil {
		return nil, err
	}
	width := 1
	for p.tok.kind == tokenDirective {
		d := p.tok.text
		if err := p.advance(); err != nil {
			return nil, err
		}
		switch d {
		case ".align":
			n, err := p.integer()
			if err != nil {
				return nil, err
			}
			if n == 0 || n > 1024 || n&(n-1) != 0 {
				return nil, p.errorf("alignment %d is not a power of two up to 1024", n)
			}
			v.align = int(n)
		case ".ptr", ".global", ".shared", ".const", ".local": // what a pointer parameter points to
			if s != spaceParam {
				return nil, p.errorf("attribute %s is not supported here", d)
			}
		case ".v2":
			width = 2
		case ".v4":
			width = 4
		default:
			t, ok := typeNames[d[1:]]
			if !ok || t == Pred || t == TF32 {
				return nil, p.errorf("type %s is not supported here", d)
			}
			v.typ = t
		}
	}
	if v.typ == noType {
		return nil, p.errorf("declaration has no type")
	}
	if natural := v.typ.bytes() * width; v.align < natural && s != spaceParam || v.align == 0 {
		v.align = natural
	}
	var err error
	if v.name, err = p.name(); err != nil {
		return nil, err
	}
	if v.size, v.count, err = p.dimensions(v.typ.bytes() * width); err != nil {
		return nil, err
	}
	v.extern = v.size == 0
	if v.extern && (s != spaceShared || v.count != 0) {
		return nil, p.errorf("variable %s has no size", v.name)
	}
	if p.bytes += v.size; p.bytes > maxVariable {
		return nil, p.errorf("variables are over %d bytes", maxVariable)
	}
	top := p.scopes[len(p.scopes)-1]
	if _, ok := top.vars[v.name]; ok {
		return nil, p.errorf("variable %s is declared twice", v.name)
	}
	if ok, err := p.eat("="); err != nil {
		return nil, err
	} else if ok {
		if s != spaceGlobal && s != spaceConst {
			return nil, p.errorf("variable %s: its space has no initial values", v.name)
		}
		v.init = make([]byte, 0, v.size)
		if err := p.initial(v); err != nil {
			return nil, err
		}
	}
	top.vars[v.name] = v
	return v, nil
}

// dimensions reads the brackets after a name. It returns the size in bytes and the number of elements.
func (p *parser) dimensions(element int) (size, count int, err error) {
	size = element
	for p.punct("[") {
		if err := p.advance(); err != nil {
			return 0, 0, err
		}
		if ok, err := p.eat("]"); err != nil {
			return 0, 0, err
		} else if ok {
			return 0, 0, nil
		}
		n, err := p.integer()
		if err != nil {
			return 0, 0, err
		}
		if n == 0 || n > maxVariable/uint64(size) {
			return 0, 0, p.errorf("dimension %d is out of range", n)
		}
		size *= int(n)
		count = size / element
		if err := p.expect("]"); err != nil {
			return 0, 0, err
		}
	}
	return size, count, nil
}

// initial reads a value, or values in braces, and appends them.
func (p *parser) initial(v *variable) error {
	if ok, err := p.eat("{"); err != nil {
		return err
	} else if ok {
		for depth := 1; depth > 0; {
			switch {
			case p.punct("{") && depth < 4:
				depth++
			case p.punct("}"):
				depth--
			case p.punct(","):
			default:
				if err := p.value(v); err != nil {
					return err
				}
				continue
			}
			if err := p.advance(); err != nil {
				return err
			}
		}
		return nil
	}
	return p.value(v)
}

func (p *parser) value(v *variable) error {
	o, err := p.number()
	if err != nil {
		return err
	}
	bits, err := o.bits(v.typ)
	if err != nil {
		return p.errorf("%v", err)
	}
	n := v.typ.bytes()
	if len(v.init)+n > v.size {
		return p.errorf("variable %s has too many initial values", v.name)
	}
	v.init = append(v.init, binary.LittleEndian.AppendUint64(nil, bits)[:n]...)
	return nil
}

// number reads a number with an optional sign.
func (p *parser) number() (operand, error) {
	neg, err := p.eat("-")
	if err != nil {
		return operand{}, err
	}
	o := operand{kind: operandInt, int: p.tok.int, float: p.tok.float, single: p.tok.single}
	switch p.tok.kind {
	case tokenInt:
		if neg {
			o.int = -o.int
		}
	case tokenFloat:
		o.kind = operandFloat
		if neg {
			o.float = -o.float
			o.int ^= 1 << 63
			if o.single {
				o.int ^= 1<<63 | 1<<31
			}
		}
	default:
		return operand{}, p.errorf("found %q where a number belongs", p.tok.text)
	}
	return o, p.advance()
}

// bits returns a constant as a value of type t.
func (o *operand) bits(t Type) (uint64, error) {
	switch o.kind {
	case operandInt:
		if t.class() == classFloat && t != F16x2 && t != BF16x2 {
			return 0, fmt.Errorf("integer constant for type %s", t)
		}
		if high := o.int &^ t.mask(); high != 0 && high != ^t.mask() {
			return 0, fmt.Errorf("constant %s does not fit type %s", strconv.FormatInt(int64(o.int), 10), t)
		}
		return o.int & t.mask(), nil
	case operandFloat:
		switch t {
		case F32, B32, TF32:
			if o.single {
				return o.int, nil
			}
			return uint64(math.Float32bits(float32(o.float))), nil
		case F64, B64:
			return math.Float64bits(o.float), nil
		}
		return 0, fmt.Errorf("float constant for type %s", t)
	}
	return 0, fmt.Errorf("not a constant")
}
