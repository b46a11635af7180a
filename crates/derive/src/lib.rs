//! `#[derive(Layout)]` of `ipc-buffer`, which exports it and says what it does.

use proc_macro2::TokenStream;
use quote::{ToTokens, quote};
use syn::ext::IdentExt;
use syn::{Attribute, Data, DataStruct, DeriveInput, Error, Path, parse_macro_input, parse_quote};

#[allow(missing_docs)] // where it is exported
#[proc_macro_derive(Layout, attributes(layout))]
pub fn layout(input: proc_macro::TokenStream) -> proc_macro::TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    registration(&input).unwrap_or_else(Error::into_compile_error).into()
}

/// What puts the struct's fields on the list where attaching looks them up.
fn registration(input: &DeriveInput) -> Result<TokenStream, Error> {
    let Data::Struct(DataStruct { fields, .. }) = &input.data else {
        return refuse(&input.ident, "Layout is for structs: enums and unions are no plain data (bytemuck::Pod)");
    };
    if !input.generics.params.is_empty() {
        // Each instance is a type of its own, and a macro does not hear of them.
        let remedy = "Layout can't know the instances of a generic struct: leave it out, and tell layouts apart by ChannelOptions::type_tag";
        return refuse(&input.generics, remedy);
    }
    if !has_fixed_layout(&input.attrs)? {
        return refuse(&input.ident, "Layout needs a fixed layout: add #[repr(C)] or #[repr(transparent)]");
    }
    let (library, name) = (library(&input.attrs)?, &input.ident);
    let fields = fields.members().zip(fields).map(|(member, field)| {
        let (text, ty) = (member_name(&member), &field.ty);
        quote! { #library::__private::Field::new::<#ty>(#text, ::core::mem::offset_of!(#name, #member)) }
    });
    Ok(quote! {
        #[allow(deprecated)]
        const _: () = {
            const __IPC_BUFFER_FIELDS: &[#library::__private::Field] = &[#(#fields),*];
            #library::__private::submit! { #library::__private::Struct::new::<#name>(__IPC_BUFFER_FIELDS) }
        };
    })
}

fn refuse<T>(place: &impl ToTokens, why: &str) -> Result<T, Error> {
    Err(Error::new_spanned(place, why))
}

fn member_name(member: &syn::Member) -> String {
    match member {
        syn::Member::Named(name) => name.unraw().to_string(),
        syn::Member::Unnamed(index) => index.index.to_string(),
    }
}

/// Whether the order of the fields is the one written down.
fn has_fixed_layout(attributes: &[Attribute]) -> Result<bool, Error> {
    let mut fixed = false;
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("repr")) {
        attribute.parse_nested_meta(|meta| {
            fixed |= meta.path.is_ident("C") || meta.path.is_ident("transparent");
            if meta.input.peek(syn::token::Paren) {
                // The number in `align(8)` and `packed(2)`.
                let content;
                syn::parenthesized!(content in meta.input);
                content.parse::<TokenStream>()?;
            }
            Ok(())
        })?;
    }
    Ok(fixed)
}

/// Where the library is: `::ipc_buffer`, unless `#[layout(crate = "path")]` says otherwise.
fn library(attributes: &[Attribute]) -> Result<Path, Error> {
    let mut library: Path = parse_quote!(::ipc_buffer);
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("layout")) {
        attribute.parse_nested_meta(|meta| {
            if !meta.path.is_ident("crate") {
                return Err(meta.error("expected `crate = \"path\"`"));
            }
            let path: syn::LitStr = meta.value()?.parse()?;
            library = path.parse()?;
            Ok(())
        })?;
    }
    Ok(library)
}
