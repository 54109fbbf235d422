package weights_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"

	"github.com/lamina-mesh/lamina/pkg/tensor"
	"github.com/lamina-mesh/lamina/pkg/weights"
	"github.com/lamina-mesh/lamina/pkg/weights/filetest"
)

// Write a safetensors file and read a tensor back.
func ExampleOpenSafetensors() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "model.safetensors")
	data := binary.LittleEndian.AppendUint32(nil, 0x3f800000) // 1.0
	tensors := []weights.Named{{Name: "norm.weight", DType: tensor.F32, Shape: []int{1}, Data: data}}
	if err := weights.WriteSafetensors(path, tensors, map[string]string{"format": "pt"}); err != nil {
		fmt.Println(err)
		return
	}
	s, err := weights.OpenSafetensors(path)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer s.Close()
	for _, name := range s.Names() {
		info, _ := s.Info(name)
		view, err := s.Data(name)
		fmt.Println(name, info.DType, info.Shape, bytes.Equal(view, data), err)
	}
	// Output: norm.weight F32 [1] true <nil>
}

// Open a GGUF file that was split into parts, by one of the parts.
func ExampleOpenGGUF() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	parts, err := filetest.Split(sampleGGUF(3).b, 2)
	if err != nil {
		fmt.Println(err)
		return
	}
	for i, part := range parts {
		path := filepath.Join(dir, fmt.Sprintf("sample-%05d-of-00002.gguf", i+1))
		if err := os.WriteFile(path, part, 0o600); err != nil {
			fmt.Println(err)
			return
		}
	}
	g, err := weights.OpenGGUF(filepath.Join(dir, "sample-00002-of-00002.gguf"))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer g.Close()
	architecture, _ := g.Meta().String("general.architecture")
	fmt.Println(g.Parts(), "parts,", len(g.Names()), "tensors,", architecture)
	// Output: 2 parts, 5 tensors, llama
}
