module github.com/lamina-mesh/lamina/pkg/kernel/cpu/gen

go 1.26
