//! Bodies of AMQP 1.0: each type, and bytes that are none.

use proptest::prelude::*;

use super::*;

const MAX: usize = 10_000;

fn json(encoded: &[u8]) -> Result<String, BodyError> {
    match read(encoded, MAX)? {
        Body::Json(json) => Ok(String::from_utf8(json).unwrap()),
        other => panic!("{other:?}"),
    }
}

fn value(encoded: &[u8]) -> Result<String, BodyError> {
    json(&[b"\0Sw", encoded].concat())
}

#[test]
fn each_type_has_its_json() {
    for (encoded, expected) in [
        (&b"\x40"[..], "null"),
        (b"\x41", "true"),
        (b"\x56\x00", "false"),
        (b"\x43", "0"),
        (b"\x44", "0"),
        (b"\x50\xff", "255"),
        (b"\x51\xff", "-1"),
        (b"\x60\x01\x00", "256"),
        (b"\x61\xff\xfe", "-2"),
        (b"\x52\x07", "7"),
        (b"\x54\x80", "-128"),
        (b"\x70\xff\xff\xff\xff", "4294967295"),
        (b"\x71\x80\0\0\0", "-2147483648"),
        (b"\x80\xff\xff\xff\xff\xff\xff\xff\xff", "18446744073709551615"),
        (b"\x81\x80\0\0\0\0\0\0\0", "-9223372036854775808"),
        (b"\x53\x09", "9"),
        (b"\x55\xff", "-1"),
        (b"\x72\x3f\xc0\0\0", "1.5"),
        (b"\x82\x3f\xf8\0\0\0\0\0\0", "1.5"),
        (b"\x73\0\0\0\xe9", "\"é\""),
        (b"\x83\0\0\0\0\0\0\x03\xe8", "1000"),
        (b"\x98\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x05", "\"00000000-0000-0000-0000-000000000005\""),
        (b"\xa3\x02ab", "\"ab\""),
        (b"\x45", "[]"),
        (b"\xc0\x06\x03\x40\xa1\x01\"\x41", "[null,\"\\\"\",true]"),
        (b"\xc0\x05\x01\xa0\x02\0\xff", "[\"AP8=\"]"),
        (b"\xc1\x06\x02\xa1\x01a\x54\x01", "{\"a\":1}"),
        (b"\xc1\x01\x00", "{}"),
        (b"\xe0\x04\x02\x50\x01\x02", "[1,2]"),
        (b"\xf0\0\0\0\x05\0\0\0\x02\x40", "[null,null]"),
    ] {
        assert_eq!(value(encoded).as_deref(), Ok(expected), "{encoded:02x?}");
    }
}

#[test]
fn sections_become_one_body() {
    assert_eq!(read(b"\0Sw\xa1\x02\xc3\xa9", MAX), Ok(Body::Text("é".into())));
    assert_eq!(read(b"\0Sw\xb0\0\0\0\x01x", MAX), Ok(Body::Bytes(b"x".to_vec())));
    assert_eq!(read(b"\0Su\xa0\x01x\0Su\xa0\x01y", MAX), Ok(Body::Bytes(b"xy".to_vec())));
    assert_eq!(json(b"\0Sv\xc0\x02\x01\x41\0Sv\x45\0Sv\xc0\x02\x01\x42").as_deref(), Ok("[true,false]"));
    assert_eq!(json(b"\0Sv\x45").as_deref(), Ok("[]"));
    // The descriptor in its long form, and a footer.
    assert_eq!(json(b"\0\x80\0\0\0\0\0\0\0\x77\x41\0Sx\xc1\x01\0").as_deref(), Ok("true"));
}

#[test]
fn what_json_lacks_is_told_apart_from_nonsense() {
    for encoded in [
        &b"\x72\x7f\x80\0\0"[..],                  // infinity
        b"\x74\0\0\0\0",                           // decimal32
        b"\0\x53\x05\x41",                         // a described value
        b"\xc1\x04\x02\x54\x01\x41",               // a number as key
        b"\xc1\x09\x04\xa1\x01a\x41\xa1\x01a\x41", // one key twice
    ] {
        assert_eq!(value(encoded), Err(BodyError::NoJson), "{encoded:02x?}");
    }
    for encoded in [
        &b""[..],
        b"\0Sw",
        b"\0Sw\xa1\x05hell",
        b"\0Sw\xa1\x01\xff",
        b"\0Sw\x41\0Sw\x41",
        b"\0Su\x41",
        b"\0Sv\x41",
        b"\0Ss\x45",
        b"\0Sw\x56\x02",
        b"\0Sw\xc0\x02\x02\x41",     // fewer elements than it says
        b"\0Sw\xc0\x03\x01\x41\x41", // more
        b"\0Sw\xc1\x02\x01\x41",     // a key without a value
        b"\0Sw\xd0\xff\xff\xff\xff\0\0\0\x01\x41",
        b"{\"a\":1}",
    ] {
        assert_eq!(read(encoded, MAX), Err(BodyError::Malformed), "{encoded:02x?}");
    }
}

#[test]
fn depth_and_length_are_bounded() {
    let nested = |levels: usize| {
        (0..levels).fold(b"\x40".to_vec(), |inner, _| {
            let count = 1u32.to_be_bytes();
            [&b"\xd0"[..], &(inner.len() as u32 + 4).to_be_bytes(), &count, &inner].concat()
        })
    };
    assert!(value(&nested(PAYLOAD_DEPTH_MAX)).is_ok());
    assert_eq!(value(&nested(PAYLOAD_DEPTH_MAX + 1)), Err(BodyError::Deep));
    assert_eq!(value(&nested(100_000)), Err(BodyError::Deep));
    // Arrays whose elements have no bytes of their own.
    for of in [0x40, 0x41, 0x43, 0x45] {
        let bomb = [&b"\xf0\0\0\0\x05\xff\xff\xff\xff"[..], &[of]].concat();
        assert_eq!(value(&bomb), Err(BodyError::Long(MAX)));
    }
}

/// A value, its encoding and its JSON.
fn any_value() -> impl Strategy<Value = (Vec<u8>, serde_json::Value)> {
    let short = |code: u8, bytes: &[u8]| [&[code, bytes.len() as u8], bytes].concat();
    let leaf = prop_oneof![
        Just((vec![0x40], serde_json::Value::Null)),
        any::<bool>().prop_map(|is| (vec![0x56, u8::from(is)], is.into())),
        any::<i64>().prop_map(|number| ([&[0x81][..], &number.to_be_bytes()].concat(), number.into())),
        any::<u32>().prop_map(|number| ([&[0x70][..], &number.to_be_bytes()].concat(), number.into())),
        "\\PC{0,20}".prop_map(move |text| (short(0xa1, text.as_bytes()), text.into())),
    ];
    leaf.prop_recursive(5, 40, 6, move |inner| {
        let compound = |code: u8, count: usize, bytes: Vec<u8>| {
            let (size, count) = (bytes.len() as u32 + 4, count as u32);
            [&[code][..], &size.to_be_bytes(), &count.to_be_bytes(), &bytes].concat()
        };
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(move |items| {
                let (bytes, json): (Vec<_>, Vec<_>) = items.into_iter().unzip();
                (compound(0xd0, bytes.len(), bytes.concat()), json.into())
            }),
            prop::collection::btree_map("\\PC{0,8}", inner, 0..6).prop_map(move |items| {
                let entry = |(key, (bytes, _)): (&String, &(Vec<u8>, _))| {
                    [short(0xa1, key.as_bytes()), bytes.clone()].concat()
                };
                let bytes: Vec<_> = items.iter().map(entry).collect();
                let json: serde_json::Map<_, _> =
                    items.iter().map(|(key, (_, json))| (key.clone(), json.clone())).collect();
                (compound(0xd1, 2 * items.len(), bytes.concat()), json.into())
            }),
        ]
    })
}

proptest! {
    #[test]
    fn any_value_arrives((encoded, expected) in any_value()) {
        let section = [b"\0Sw", &encoded[..]].concat();
        let got = match read(&section, 1 << 20).unwrap() {
            Body::Json(json) => serde_json::from_slice(&json).unwrap(),
            Body::Text(text) => serde_json::Value::from(text),
            Body::Bytes(bytes) => panic!("{bytes:?}"),
        };
        prop_assert_eq!(got, expected);
    }

    /// Sound bodies with some bytes changed or cut off: what is read is JSON and within its bounds.
    #[test]
    fn malformed_input_does_no_harm(
        (encoded, _) in any_value(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        is_cut in any::<bool>(),
    ) {
        let mut section = [b"\0Sw", &encoded[..]].concat();
        for (at, byte) in changes {
            let at = at.index(section.len());
            section[at] = byte;
        }
        if is_cut {
            section.truncate(cut.index(section.len()));
        }
        if let Ok(Body::Json(json)) = read(&section, 500) {
            prop_assert!(json.len() <= 500);
            let text = std::str::from_utf8(&json).unwrap();
            prop_assert!(crate::protocol::publish::check_depth(text.as_bytes()).is_ok());
            prop_assert!(serde_json::from_str::<&serde_json::value::RawValue>(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = read(&[b"\0Sw", &bytes[..]].concat(), MAX);
        let _ = read(&bytes, MAX);
    }
}

#[test]
fn fuzzed() {
    let good = [
        &b"\0Sw\xa1\x05hello"[..],
        b"\0Sv\xd0\0\0\0\x08\0\0\0\x02U\x01U\x02",
        b"\0Su\xa0\x02{}",
        b"\0Swr\x7f\x80\0\0",
    ];
    crate::tests::fuzz::fuzz(
        "AMQP 1.0 bodies",
        &good.map(<[u8]>::to_vec),
        &["\0Sw", "\0Sv", "\0Su"],
        |input| match read(input, 500) {
            Ok(Body::Json(json)) => {
                assert!(json.len() <= 500);
                let text = std::str::from_utf8(&json).expect("JSON is text");
                assert!(crate::protocol::publish::check_depth(text.as_bytes()).is_ok());
                serde_json::from_str::<&serde_json::value::RawValue>(text).expect("JSON");
                format!("json {:?}", text.chars().next())
            }
            Ok(Body::Text(text)) => format!("text {}", text.is_empty()),
            Ok(Body::Bytes(bytes)) => format!("bytes {}", bytes.is_empty()),
            Err(error) => error.to_string(),
        },
    );
}
