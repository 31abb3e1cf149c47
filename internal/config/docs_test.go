package config

import (
	"cmp"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
)

// row is a row of a table of docs/configuration.md: field, type, default, meaning.
var row = regexp.MustCompile("(?m)^\\| `([A-Za-z.]+)` \\| ([^|]+) \\| ([^|]+) \\| (.+) \\|$")

// TestDocumentation compares docs/configuration.md with the type: every field is there, no other is, and with its default.
func TestDocumentation(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "configuration.md"))
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	for _, match := range row.FindAllStringSubmatch(string(page), -1) {
		if _, twice := documented[match[1]]; twice {
			t.Errorf("%s is documented twice", match[1])
		}
		documented[match[1]] = strings.Trim(match[3], "`")
		if len(strings.TrimSpace(match[4])) < 10 {
			t.Errorf("%s: the meaning %q is too short", match[1], match[4])
		}
	}
	fields := map[string]string{}
	leaves(reflect.ValueOf(Default()).Elem(), "", fields)
	if len(fields) < 20 {
		t.Fatalf("only %d fields were found: %v", len(fields), fields)
	}
	if diff := gocmp.Diff(fields, documented); diff != "" {
		t.Errorf("docs/configuration.md differs from the type (-type +page):\n%s", diff)
	}
}

// leaves collects the fields that are no structs of this package, with their values.
func leaves(v reflect.Value, prefix string, into map[string]string) {
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		value := v.Field(i)
		if value.Kind() == reflect.Pointer {
			value = value.Elem()
		}
		if _, isDuration := value.Interface().(Duration); value.Kind() == reflect.Struct && !isDuration {
			leaves(value, prefix+name+".", into)
			continue
		}
		into[prefix+name] = shown(value.Interface())
	}
}

// shown is how the page writes a value: "none" for nothing.
func shown(v any) string {
	if d, ok := v.(Duration); ok {
		return short(d.String())
	}
	switch r := reflect.ValueOf(v); r.Kind() {
	case reflect.Map, reflect.Slice:
		if r.Len() == 0 {
			return "none"
		}
	case reflect.String:
		return cmp.Or(r.String(), "none")
	default:
	}
	data, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return strings.NewReplacer(`"`, "", ",", ", ", ":", ": ").Replace(string(data))
}

// short drops the zeros that time.Duration prints: 1h0m0s is 1h.
func short(s string) string {
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
