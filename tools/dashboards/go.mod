module github.com/lamina-mesh/lamina/tools/dashboards

go 1.26.7

toolchain go1.26.10

require (
	github.com/lamina-mesh/lamina v0.0.0
	github.com/prometheus/prometheus v0.316.0
)

replace github.com/lamina-mesh/lamina => ../..
