package snapmeta

import (
	"encoding/hex"
	"flag"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/kubernetes-csi/external-snapshot-metadata/pkg/api"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
	"github.com/cbt-populator/cbt-populator/test/seeded"
	"github.com/cbt-populator/cbt-populator/test/size"
)

// A longer comparison of the parser with the generated code than TestWireRandom makes by default:
//
//	go test ./internal/snapmeta -run TestWireRandom -messages 10000000
//	go test ./internal/snapmeta -run - -fuzz FuzzWire -fuzztime 3m -fuzzminimizetime 1x
var (
	messagesFlag = flag.Int("messages", 0, "how many random messages TestWireRandom parses; 0: 200,000, or 40,000 with -short")
)

// generated parses b with the generated code of both responses, which must agree.
func generated(t *testing.T, b []byte) (message, error) {
	t.Helper()
	var allocated api.GetMetadataAllocatedResponse
	var delta api.GetMetadataDeltaResponse
	err, deltaErr := proto.Unmarshal(b, &allocated), proto.Unmarshal(b, &delta)
	if (err == nil) != (deltaErr == nil) {
		t.Fatalf("%x: the responses differ: %v, %v", b, err, deltaErr)
	}
	if err != nil {
		return message{}, err
	}
	m := toMessage(&allocated)
	if other := toMessage(&delta); !same(m, other) {
		t.Fatalf("%x: the responses differ\n%s", b, cmp.Diff(m, other, cmp.AllowUnexported(message{})))
	}
	return m, nil
}

func toMessage(r interface {
	GetBlockMetadataType() api.BlockMetadataType
	GetVolumeCapacityBytes() int64
	GetBlockMetadata() []*api.BlockMetadata
}) message {
	m := message{kind: r.GetBlockMetadataType(), capacity: r.GetVolumeCapacityBytes()}
	for _, b := range r.GetBlockMetadata() {
		m.extents = append(m.extents, blocklist.Extent{Offset: b.GetByteOffset(), Length: b.GetSizeBytes()})
	}
	return m
}

// same compares without cmp, which takes most of the time of a hundred thousand comparisons.
func same(a, b message) bool {
	return a.kind == b.kind && a.capacity == b.capacity && slices.Equal(a.extents, b.extents)
}

// checkWire parses b, cut into buffers at the given places, and compares with the generated code. The memory that is
// reused holds rubbish.
func checkWire(t *testing.T, b []byte, cuts ...int) {
	t.Helper()
	in := incoming{reuse: slices.Repeat([]blocklist.Extent{{Offset: 77, Length: 88}}, 5), joined: []byte("rubbish")}
	in.message = message{kind: 7, capacity: 77, extents: in.reuse}
	var data mem.BufferSlice
	rest := b
	for _, n := range cuts {
		n = min(n, len(rest))
		data = append(data, mem.SliceBuffer(rest[:n]))
		rest = rest[n:]
	}
	data = append(data, mem.SliceBuffer(rest))
	want, wantErr := generated(t, b)
	err := newWireCodec().Unmarshal(data, &in)
	if (err == nil) != (wantErr == nil) {
		t.Fatalf("%x: parsed with %v, by the generated code with %v", b, err, wantErr)
	}
	if err != nil {
		return
	}
	if !same(in.message, want) {
		t.Fatalf("%x: parsed %+v, by the generated code %+v", b, in.message, want)
	}
}

// oddMessages are made by hand, in hexadecimal: what serializers do not write but parsers must judge.
var oddMessages = map[string]string{
	"empty":                              "",
	"usual":                              "080110808020" + "1a06088020108020" + "1a0708808001108020",
	"tuples first":                       "1a06088020108020" + "10808020" + "0801",
	"scalars between tuples, last wins":  "0801" + "1a06088020108020" + "0802" + "1007" + "1a0608c020108020" + "1008",
	"empty tuple":                        "1a00",
	"tuple without offset":               "1a03108020",
	"tuple without length":               "1a03088020",
	"length before offset":               "1a06108020088020",
	"offset twice":                       "1a08088020088040" + "1001",
	"offset twice, in the usual place":   "1a09088020108020088040" + "000000000000000000000000000000",
	"length too short by one":            "1a05088020108020" + "0801080108010801080108010801",
	"length too long by two":             "1a08088020108020" + "0801080108010801080108010801",
	"length past the end":                "1a7f088020108020",
	"length of five bytes":               "1a86808080000880201080200801080108010801080108010801",
	"length of 2^63":                     "1a80808080808080808001",
	"non-canonical numbers":              "1a0e08808080808080001080a0808080808000",
	"non-canonical tags":                 "8800011a0a8880000710828080000a" + "9a8000021001",
	"tag of five bytes":                  "88808080000a",
	"tag of eleven bytes":                "8880808080808080808080000a",
	"negative offset":                    "1a0e08ffffffffffffffffff01108020" + "080108010801080108010801",
	"ten bytes that overflow":            "1a0e08ffffffffffffffffff02108020" + "080108010801080108010801",
	"eleven bytes":                       "1a0f08ffffffffffffffffffff01108020" + "0801080108010801",
	"offset of 56 bits":                  "1a0c08ffffffffffffff7f108020" + "08010801080108010801080108010801",
	"offset of 63 bits":                  "1a0d08ffffffffffffffff7f108020" + "08010801080108010801080108010801",
	"enum of the future":                 "0807",
	"enum past 32 bits":                  "08ffffffff1f",
	"enum that is negative":              "08ffffffffffffffffff01",
	"kind as bytes":                      "0a0101" + "0801",
	"capacity as fixed64":                "110102030405060708" + "1005",
	"tuple as varint":                    "1805",
	"offset as fixed32":                  "1a080d01020304108020",
	"unknown fields":                     "2005" + "2a03010203" + "310102030405060708" + "3d01020304" + "0801",
	"unknown field in a tuple":           "1a0908802010802018ff01",
	"largest field number":               "f8ffffff0f01",
	"field number too large":             "8080808010" + "01",
	"field number too large in a group":  "23" + "8080808010" + "01" + "24",
	"field number past 32 bits":          "88808080800101",
	"field number 0":                     "0001",
	"field number 0 in a tuple":          "1a020001",
	"group":                              "23080124" + "0801",
	"groups in groups":                   "232b2c24" + "0802",
	"group instead of a tuple":           "1b08011c",
	"group instead of a kind":            "0b08010c",
	"group in a tuple":                   "1a0723080110022410" + "01",
	"group that is not closed":           "230801",
	"group closed by another":            "2308012c",
	"end of a group":                     "24",
	"end of a group in a tuple":          "1a0124",
	"end of a group of a tuple":          "1a011c" + "0801",
	"wire type 6":                        "0e01",
	"wire type 7":                        "1f01",
	"wire type 6 in a tuple":             "1a020e01",
	"cut in a tag":                       "0801" + "88",
	"cut behind a tag":                   "0801" + "1a",
	"cut in a length":                    "1a80",
	"cut in a tuple":                     "1a06088020",
	"cut in a number":                    "1080",
	"tuple that ends in a number":        "1a0308802010" + "802010802010802010802010802010",
	"tuple that ends behind a tag":       "1a0408802010" + "802010802010802010802010802010",
	"numbers that reach past the tuple":  "1a0308808080808001108020" + "10802010802010802010",
	"length with other bytes behind it":  "1a07088020108020" + "20" + "1a0608a020108020" + "1a0608b020108020",
	"kind of a wire type with 3 as type": "0b",
}

func oddMessage(t testing.TB, name string) []byte {
	b, err := hex.DecodeString(oddMessages[name])
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return b
}

// TestWireOdd parses every odd message as it is, followed by usual tuples, cut at every byte, and in two and three buffers.
func TestWireOdd(t *testing.T) {
	usual := marshal(t, list(8192, 4096, 1<<40, 4096, 1<<50, 1<<20, 1<<60, 1))
	for name := range oddMessages {
		t.Run(name, func(t *testing.T) {
			b := oddMessage(t, name)
			for _, b := range [][]byte{b, slices.Concat(b, usual), slices.Concat(usual, b), slices.Concat(usual, b, usual)} {
				checkWire(t, b)
				for cut := range b {
					checkWire(t, b[:cut])
					checkWire(t, b, cut)
					checkWire(t, b, cut, 1)
					checkWire(t, b, 0, cut, 0)
				}
			}
		})
	}
}

func marshal(t testing.TB, extents []blocklist.Extent) []byte {
	r := &api.GetMetadataDeltaResponse{BlockMetadataType: variable, VolumeCapacityBytes: 1 << 62}
	for _, e := range extents {
		r.BlockMetadata = append(r.BlockMetadata, &api.BlockMetadata{ByteOffset: e.Offset, SizeBytes: e.Length})
	}
	b, err := proto.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestWireRandom parses random messages: usual ones, odd ones, and either with some bytes changed.
func TestWireRandom(t *testing.T) {
	rng := seeded.Rand(t)
	whole, messages := 0, size.Or(*messagesFlag, 200_000, 40_000)
	for range messages {
		b := randomMessage(rng, 0)
		if rng.IntN(3) == 0 {
			for range 1 + rng.IntN(3) {
				b = damage(rng, b)
			}
		}
		checkWire(t, b, rng.IntN(len(b)+1), rng.IntN(len(b)+1))
		if _, err := parseMessage(b, nil); err == nil {
			whole++
		}
	}
	if whole < messages/10 || whole == messages {
		t.Errorf("%d of %d messages were whole: the test tests one side only", whole, messages)
	}
}

// randomMessage returns the body of a response at depth 0 and of a tuple at depth 1.
func randomMessage(rng *rand.Rand, depth int) []byte {
	var b []byte
	for range rng.IntN(12) {
		switch n := rng.IntN(100); {
		case n < 60 && depth == 0:
			b = protowire.AppendTag(b, extentField, protowire.BytesType)
			b = protowire.AppendBytes(b, randomTuple(rng))
		case n < 90:
			b = protowire.AppendTag(b, protowire.Number(1+rng.IntN(3)), protowire.VarintType)
			b = appendNumber(rng, b)
		case n < 93 && depth == 0:
			b = protowire.AppendTag(b, protowire.Number(1+rng.IntN(5)), protowire.BytesType)
			b = protowire.AppendBytes(b, randomMessage(rng, 1))
		default:
			b = appendOther(rng, b)
		}
	}
	return b
}

// randomTuple returns one as serializers write it, or a few odd fields.
func randomTuple(rng *rand.Rand) []byte {
	if rng.IntN(5) == 0 {
		return randomMessage(rng, 1)
	}
	b := appendNumber(rng, []byte{offsetTag})
	return appendNumber(rng, append(b, lengthTag))
}

// appendNumber appends a varint of any length, sometimes not in its shortest form.
func appendNumber(rng *rand.Rand, b []byte) []byte {
	b = protowire.AppendVarint(b, rng.Uint64()>>rng.IntN(64))
	if rng.IntN(20) == 0 {
		for range rng.IntN(9) {
			b[len(b)-1] |= 0x80
			b = append(b, 0)
		}
	}
	return b
}

// appendOther appends a field of any number and wire type.
func appendOther(rng *rand.Rand, b []byte) []byte {
	number := protowire.Number(1 + rng.IntN(6))
	if rng.IntN(10) == 0 {
		number = protowire.Number(rng.Int32())
	}
	wireType := protowire.Type(rng.IntN(8))
	b = protowire.AppendVarint(b, uint64(number)<<3|uint64(wireType))
	switch wireType {
	case protowire.VarintType:
		return appendNumber(rng, b)
	case protowire.Fixed32Type:
		return protowire.AppendFixed32(b, rng.Uint32())
	case protowire.Fixed64Type:
		return protowire.AppendFixed64(b, rng.Uint64())
	case protowire.BytesType:
		return protowire.AppendBytes(b, make([]byte, rng.IntN(20)))
	case protowire.StartGroupType:
		b = append(b, randomMessage(rng, 1)...)
		return protowire.AppendTag(b, number&math.MaxInt8, protowire.EndGroupType)
	case protowire.EndGroupType: // which is an error here
	}
	return b
}

// damage changes, removes or doubles bytes.
func damage(rng *rand.Rand, b []byte) []byte {
	if len(b) == 0 {
		return []byte{byte(rng.Uint32())}
	}
	i := rng.IntN(len(b))
	switch rng.IntN(4) {
	case 0:
		return b[:i]
	case 1:
		return slices.Delete(b, i, i+1)
	case 2:
		return slices.Insert(b, i, byte(rng.Uint32()))
	}
	b[i] ^= 1 << rng.IntN(8)
	return b
}

// FuzzWire looks for a message on which the parser and the generated code differ.
func FuzzWire(f *testing.F) {
	for name := range oddMessages {
		f.Add(oddMessage(f, name), uint16(0))
	}
	f.Add(marshal(f, list(0, 4096, 8192, 4096, 1<<40, 4096, 1<<60, 1)), uint16(20))
	rng := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		f.Add(randomMessage(rng, 0), uint16(rng.Uint32()))
	}
	f.Fuzz(func(t *testing.T, b []byte, cut uint16) { checkWire(t, b, int(cut)) })
}

// TestWireLayout compares the field numbers and types that the parser knows with those of the API.
func TestWireLayout(t *testing.T) {
	type field struct {
		number protowire.Number
		kind   protoreflect.Kind
		list   bool
	}
	for _, m := range []proto.Message{&api.GetMetadataAllocatedResponse{}, &api.GetMetadataDeltaResponse{}, &api.BlockMetadata{}} {
		descriptor := m.ProtoReflect().Descriptor()
		want := map[string]field{
			"block_metadata_type":   {kindField, protoreflect.EnumKind, false},
			"volume_capacity_bytes": {capacityField, protoreflect.Int64Kind, false},
			"block_metadata":        {extentField, protoreflect.MessageKind, true},
		}
		if descriptor.Name() == "BlockMetadata" {
			want = map[string]field{
				"byte_offset": {offsetField, protoreflect.Int64Kind, false},
				"size_bytes":  {lengthField, protoreflect.Int64Kind, false},
			}
		}
		got := map[string]field{}
		for i := range descriptor.Fields().Len() {
			f := descriptor.Fields().Get(i)
			got[string(f.Name())] = field{f.Number(), f.Kind(), f.IsList()}
			if f.Kind() == protoreflect.MessageKind && f.Message().FullName() != "snapshotmetadata.BlockMetadata" {
				t.Errorf("%s holds %s", f.FullName(), f.Message().FullName())
			}
			if f.Kind() == protoreflect.EnumKind && f.Enum().IsClosed() {
				t.Errorf("%s is a closed enumeration", f.FullName())
			}
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(field{})); diff != "" {
			t.Errorf("%s (-want +got)\n%s", descriptor.FullName(), diff)
		}
	}
}
