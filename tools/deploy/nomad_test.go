package deploy

import (
	"math/big"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclparse"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/nomad/api"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"
	"github.com/zclconf/go-cty/cty/function/stdlib"
)

// TestNomad_JobIsValid compares every block and attribute of the job with the names that Nomad's types have for it,
// and gives every task's command line to the binary.
func TestNomad_JobIsValid(t *testing.T) {
	file, diags := hclparse.NewParser().ParseHCLFile(filepath.Join(root, "deploy", "nomad", "lamina.nomad.hcl"))
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	body := file.Body.(*hclsyntax.Body)
	vars := map[string]cty.Value{}
	runtime := map[string]cty.Value{"NOMAD_ALLOC_DIR": cty.StringVal("/alloc")}
	var job *hclsyntax.Block
	for _, b := range body.Blocks {
		switch b.Type {
		case "variable":
			v, diags := b.Body.Attributes["default"].Expr.Value(nil)
			if diags.HasErrors() {
				t.Fatal(diags)
			}
			vars[b.Labels[0]] = v
		case "job":
			job = b
		default:
			t.Errorf("%s: block %q is neither a variable nor a job", b.TypeRange, b.Type)
		}
	}
	if job == nil {
		t.Fatal("there is no job")
	}
	checkBody(t, job.Body, reflect.TypeFor[api.Job]())

	found := map[string]bool{}
	for _, group := range blocks(job.Body, "group") {
		for _, network := range blocks(group.Body, "network") {
			for _, port := range blocks(network.Body, "port") {
				v, diags := port.Body.Attributes["static"].Expr.Value(nil)
				if diags.HasErrors() {
					t.Fatal(diags)
				}
				number, _ := v.AsBigFloat().Int(new(big.Int))
				runtime["NOMAD_ADDR_"+port.Labels[0]] = cty.StringVal("10.0.0.1:" + number.String())
			}
		}
	}
	scope := &hcl.EvalContext{Variables: runtime}
	scope.Variables["var"] = cty.ObjectVal(vars)
	scope.Functions = map[string]function.Function{"floor": stdlib.FloorFunc}
	for _, group := range blocks(job.Body, "group") {
		for _, task := range blocks(group.Body, "task") {
			config := blocks(task.Body, "config")[0]
			list, diags := config.Body.Attributes["args"].Expr.Value(scope)
			if diags.HasErrors() {
				t.Fatal(diags)
			}
			var args []string
			for _, v := range list.AsValueSlice() {
				args = append(args, v.AsString())
			}
			accepts(t, "", args...)
			found[args[0]] = true
		}
	}
	for _, service := range services {
		if !found[service] {
			t.Errorf("no task runs the %s", service)
		}
	}
}

func blocks(body *hclsyntax.Body, kind string) (out []*hclsyntax.Block) {
	for _, b := range body.Blocks {
		if b.Type == kind {
			out = append(out, b)
		}
	}
	return out
}

// checkBody compares the names in a body with the tags of Nomad's type for it.
func checkBody(t *testing.T, body *hclsyntax.Body, typ reflect.Type) {
	t.Helper()
	attributes, inner := map[string]bool{}, map[string]reflect.Type{}
	var names []string
	for i := range typ.NumField() {
		name, kind, _ := strings.Cut(typ.Field(i).Tag.Get("hcl"), ",")
		if name == "" {
			continue
		}
		names = append(names, name)
		field := typ.Field(i).Type
		for field.Kind() == reflect.Pointer || field.Kind() == reflect.Slice || field.Kind() == reflect.Map {
			field = field.Elem()
		}
		if kind == "block" {
			inner[name] = field
		} else {
			attributes[name] = true
		}
	}
	switch typ { // blocks that Nomad decodes by hand
	case reflect.TypeFor[api.Job]():
		inner["group"] = reflect.TypeFor[api.TaskGroup]()
	case reflect.TypeFor[api.NetworkResource]():
		inner["port"] = reflect.TypeFor[api.Port]()
	}
	slices.Sort(names)
	for name, a := range body.Attributes {
		if !attributes[name] {
			t.Errorf("%s: Nomad's %s has no attribute %q, it has %q", a.NameRange, typ.Name(), name, names)
		}
	}
	for _, b := range body.Blocks {
		of, ok := inner[b.Type]
		switch {
		case !ok:
			t.Errorf("%s: Nomad's %s has no block %q, it has %q", b.TypeRange, typ.Name(), b.Type, names)
		case of.Kind() == reflect.Struct:
			checkBody(t, b.Body, of)
		}
	}
}
