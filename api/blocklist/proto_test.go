package blocklist

import (
	"bytes"
	"encoding/binary"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

// protoFile builds the descriptor of blocklist.proto from its text, so that this test decodes by the published file and
// not by a copy of it. It knows as much of the language as that file uses.
func protoFile(t *testing.T) protoreflect.FileDescriptor {
	t.Helper()
	text, err := os.ReadFile("blocklist.proto")
	if err != nil {
		t.Fatal(err)
	}
	file := &descriptorpb.FileDescriptorProto{Name: proto.String("blocklist.proto"), Syntax: proto.String("proto3")}
	var message *descriptorpb.DescriptorProto
	var enum *descriptorpb.EnumDescriptorProto
	block := regexp.MustCompile(`^(message|enum) (\w+) \{$`)
	field := regexp.MustCompile(`^(repeated )?(\w+) (\w+) = (\d+)( \[packed = true\])?;$`)
	value := regexp.MustCompile(`^(\w+) = (\d+);$`)
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		switch m := block.FindStringSubmatch(line); {
		case line == "" || strings.HasPrefix(line, "//") || strings.HasPrefix(line, "option ") || strings.HasPrefix(line, "syntax "):
		case strings.HasPrefix(line, "package "):
			file.Package = proto.String(strings.Trim(line[len("package "):], ";"))
		case m != nil && m[1] == "message":
			message = &descriptorpb.DescriptorProto{Name: &m[2]}
			file.MessageType = append(file.MessageType, message)
		case m != nil && m[1] == "enum":
			enum = &descriptorpb.EnumDescriptorProto{Name: &m[2]}
			message.EnumType = append(message.EnumType, enum)
		case line == "}" && enum != nil:
			enum = nil
		case line == "}":
		case enum != nil && value.MatchString(line):
			v := value.FindStringSubmatch(line)
			enum.Value = append(enum.Value, &descriptorpb.EnumValueDescriptorProto{Name: &v[1], Number: number(t, v[2])})
		case field.MatchString(line):
			message.Field = append(message.Field, protoField(t, field.FindStringSubmatch(line)))
		default:
			t.Fatalf("blocklist.proto: cannot read %q", line)
		}
	}
	d, err := protodesc.NewFile(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func protoField(t *testing.T, m []string) *descriptorpb.FieldDescriptorProto {
	f := &descriptorpb.FieldDescriptorProto{Name: &m[3], Number: number(t, m[4]), Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum()}
	if m[1] != "" {
		f.Label = descriptorpb.FieldDescriptorProto_LABEL_REPEATED.Enum()
	}
	if kind, ok := descriptorpb.FieldDescriptorProto_Type_value["TYPE_"+strings.ToUpper(m[2])]; ok {
		f.Type = descriptorpb.FieldDescriptorProto_Type(kind).Enum()
	} else {
		f.TypeName = &m[2] // protodesc finds out whether it is a message or an enumeration
	}
	return f
}

func number(t *testing.T, digits string) *int32 {
	n, err := strconv.ParseInt(digits, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	return proto.Int32(int32(n))
}

// TestOfficialProtobuf decodes every record of our lists with google.golang.org/protobuf by blocklist.proto, demands
// that nothing in it is unknown and that encoding it gives the same bytes, and rebuilds the extents from the messages.
func TestOfficialProtobuf(t *testing.T) {
	records := protoFile(t).Messages().ByName("Record")
	extents := append(blocks(1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 145, 146, 147, 148, 149, 150, 200), Extent{8 << 20, 3}, Extent{9 << 20, 1 << 20})
	for _, l := range []layout{small, formatLayout} {
		for _, want := range [][]Extent{nil, extents} {
			raw, trailer := encode(t, Binary, l, sampleHeader(), want)
			var got []Extent
			for rest := raw[len(magic) : len(raw)-footerBytes]; len(rest) > 0; {
				length, n := binary.Uvarint(rest)
				record := dynamicpb.NewMessage(records)
				if err := proto.Unmarshal(rest[n:][:length], record); err != nil {
					t.Fatal(err)
				}
				again, err := proto.MarshalOptions{Deterministic: true}.Marshal(record)
				if err != nil || !bytes.Equal(again, rest[n:][:length]) {
					t.Fatalf("record %v: the official encoding is\n%x, %v, ours\n%x", record, again, err, rest[n:][:length])
				}
				checkKnown(t, record)
				got = append(got, checkRecord(t, record, trailer)...)
				rest = rest[n+int(length):]
			}
			if len(got) != len(want) {
				t.Fatalf("%d extents, want %d", len(got), len(want))
			}
			for i := range got {
				if got[i] != want[i] {
					t.Errorf("extent %d is %v, want %v", i, got[i], want[i])
				}
			}
		}
	}
}

func checkKnown(t *testing.T, m protoreflect.Message) {
	if len(m.GetUnknown()) > 0 {
		t.Errorf("%s has unknown fields: %x", m.Descriptor().Name(), m.GetUnknown())
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if f.Kind() == protoreflect.MessageKind && !f.IsList() {
			checkKnown(t, v.Message())
		}
		return true
	})
}

// checkRecord checks what a record's message says, by its published names, and returns its extents if it is a chunk.
func checkRecord(t *testing.T, record protoreflect.Message, trailer Trailer) []Extent {
	var body protoreflect.FieldDescriptor
	record.Range(func(f protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		if f.Kind() == protoreflect.MessageKind {
			if body != nil {
				t.Errorf("a record has both a %s and a %s", body.Name(), f.Name())
			}
			body = f
		}
		return true
	})
	m := record.Get(body).Message()
	get := func(name protoreflect.Name) protoreflect.Value { return m.Get(m.Descriptor().Fields().ByName(name)) }
	enumName := func(name protoreflect.Name) string {
		return string(m.Descriptor().Fields().ByName(name).Enum().Values().ByNumber(get(name).Enum()).Name())
	}
	switch body.Name() {
	case "header":
		h := Header{
			Mode: map[string]Mode{"DELTA": Delta, "ALLOCATED": Allocated}[enumName("mode")], Driver: get("driver").String(), Namespace: get("namespace").String(),
			BaseSnapshot: get("base_snapshot").String(), BaseSnapshotHandle: get("base_snapshot_handle").String(),
			TargetSnapshot: get("target_snapshot").String(), TargetSnapshotHandle: get("target_snapshot_handle").String(),
			VolumeCapacityBytes: get("volume_capacity_bytes").Int(), BaseRestoreSizeBytes: get("base_restore_size_bytes").Int(),
			TargetRestoreSizeBytes: get("target_restore_size_bytes").Int(), BlockMetadataType: BlockMetadataType(enumName("block_metadata_type")),
			GranularityBytes: get("granularity_bytes").Int(), Merged: get("merged").Bool(),
		}
		if h != sampleHeader() || get("format_version").Uint() != FormatVersion {
			t.Errorf("header %v, want %+v", m, sampleHeader())
		}
	case "chunk":
		return chunkExtentsOf(get("first_offset").Int(), get("unit_shift").Uint(), get("extents").List())
	case "trailer":
		if get("entry_count").Int() != trailer.EntryCount || get("changed_bytes").Int() != trailer.ChangedBytes || !get("complete").Bool() {
			t.Errorf("trailer %v, want %+v", m, trailer)
		}
	}
	return nil
}

// chunkExtentsOf is the decoder that blocklist.proto describes, in its plainest form.
func chunkExtentsOf(end int64, shift uint64, values protoreflect.List) (extents []Extent) {
	length := int64(0)
	for i := 0; i < values.Len(); i++ {
		v := values.Get(i).Uint()
		if v&1 != 0 {
			i++
			length = int64(values.Get(i).Uint()) << shift
		}
		offset := end + int64(v>>1)<<shift
		extents = append(extents, Extent{offset, length})
		end = offset + length
	}
	return extents
}
