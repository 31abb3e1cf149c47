package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/cbt-populator/cbt-populator/internal/kubeaccess"
)

// The formats in which objects of the API are printed, besides tables.
const (
	objectJSON = "json"
	objectYAML = "yaml"
	objectName = "name"
)

// checkObjectFormat returns an error of the command line unless format is empty or one of allowed.
func checkObjectFormat(format string, allowed ...string) error {
	if format == "" || slices.Contains(allowed, format) {
		return nil
	}
	return usagef("--output: %q is unknown: use one of %s", format, strings.Join(allowed, ", "))
}

// printObjects prints objects as kubectl does, without the fields that only the API server needs: one alone, several as YAML
// documents, as a JSON List, or as resource/name lines.
func printObjects(w io.Writer, a *kubeaccess.Access, format string, objects ...kubeaccess.Object) error {
	all, err := plain(a, objects)
	if err != nil {
		return err
	}
	var data []byte
	switch format {
	case objectName:
		data = resourceNames(all)
	case objectYAML:
		data, err = yamlDocuments(all)
	default:
		data, err = jsonDocument(all)
	}
	if err != nil {
		return fmt.Errorf("print objects: %w", err)
	}
	if _, err := w.Write(data); err != nil {
		return fmt.Errorf("print objects: %w", err)
	}
	return nil
}

// plain returns objects as they are printed.
func plain(a *kubeaccess.Access, objects []kubeaccess.Object) ([]map[string]any, error) {
	var all []map[string]any
	for _, o := range objects {
		content, err := a.Plain(o)
		if err != nil {
			return nil, err
		}
		all = append(all, content)
	}
	return all, nil
}

// printCreated says that an object was created, as kubectl does.
func printCreated(w io.Writer, a *kubeaccess.Access, o kubeaccess.Object) error {
	content, err := a.Plain(o)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(w, "%s created\n", strings.TrimSpace(string(resourceNames([]map[string]any{content})))); err != nil {
		return fmt.Errorf("print objects: %w", err)
	}
	return nil
}

func resourceNames(all []map[string]any) []byte {
	var b []byte
	for _, content := range all {
		u := &unstructured.Unstructured{Object: content}
		resource := strings.ToLower(u.GetKind())
		if group := u.GroupVersionKind().Group; group != "" {
			resource += "." + group
		}
		b = fmt.Appendf(b, "%s/%s\n", resource, u.GetName())
	}
	return b
}

func yamlDocuments(all []map[string]any) ([]byte, error) {
	var b []byte
	for i, content := range all {
		data, err := yaml.Marshal(content)
		if err != nil {
			return nil, err
		}
		if i > 0 {
			b = append(b, "---\n"...)
		}
		b = append(b, data...)
	}
	return b, nil
}

func jsonDocument(all []map[string]any) ([]byte, error) {
	if len(all) == 1 {
		return indented(all[0])
	}
	return indented(objectList(all))
}

// objectList is the List that kubectl prints.
func objectList(all []map[string]any) map[string]any {
	items := make([]any, len(all))
	for i := range all {
		items[i] = all[i]
	}
	return map[string]any{"apiVersion": "v1", "kind": "List", "metadata": map[string]any{}, "items": items}
}

func indented(value any) ([]byte, error) {
	data, err := json.MarshalIndent(value, "", "    ")
	return append(data, '\n'), err
}

// printList prints objects as one List, also if there is one or none.
func printList(w io.Writer, a *kubeaccess.Access, format string, objects []kubeaccess.Object) error {
	if format == objectName {
		return printObjects(w, a, format, objects...)
	}
	all, err := plain(a, objects)
	if err != nil {
		return err
	}
	data, err := indented(objectList(all))
	if format == objectYAML {
		data, err = yaml.Marshal(objectList(all))
	}
	if err != nil {
		return fmt.Errorf("print objects: %w", err)
	}
	if _, err := w.Write(data); err != nil {
		return fmt.Errorf("print objects: %w", err)
	}
	return nil
}
