module github.com/lamina-mesh/lamina/pkg/kernel/cuda/gen

go 1.26

toolchain go1.26.10
