package app_test

import (
	"reflect"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/services/router"
)

// Every setting of Scheduling reaches the router's setting of the same name.
func TestScheduling_ReachesTheRouter(t *testing.T) {
	var s app.Scheduling
	set := reflect.ValueOf(&s).Elem()
	for i := range set.NumField() { // another value for each
		switch f := set.Field(i); f.Interface().(type) {
		case int, time.Duration:
			f.SetInt(int64(1000 + i))
		case float64:
			f.SetFloat(float64(1000 + i))
		case bool:
			f.SetBool(true)
		default:
			t.Fatalf("a value for the type of %s", set.Type().Field(i).Name)
		}
	}
	got := reflect.ValueOf(app.RouterServiceConfig(app.RouterConfig{Scheduling: s}))
	for i := range set.NumField() {
		name := set.Type().Field(i).Name
		f := got.FieldByName(name)
		if !f.IsValid() {
			t.Errorf("%T has no field %s", router.Config{}, name)
		} else if f.Interface() != set.Field(i).Interface() {
			t.Errorf("%s is %v in the router, want %v", name, f.Interface(), set.Field(i).Interface())
		}
	}
}
