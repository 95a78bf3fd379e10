//! The routes below `/api`, and their description as OpenAPI 3.1.

mod events;
mod grid;
mod query;
mod result;
mod submit;
mod tasks;

use std::sync::Arc;

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::options::{Kind, MODEL_OPTIONS};
use crate::problem::{Fault, Problem};
use crate::state::Api;

/// Where the routes are.
pub(crate) const BASE: &str = "/api/v1";
/// Opened on its own, a response runs no script and has no origin.
const NO_DOCUMENT: HeaderValue = HeaderValue::from_static("default-src 'none'; sandbox");

#[derive(OpenApi)]
#[openapi(
    info(title = "LamaGrid", description = "Submits inpainting tasks to a grid, and shows and cancels them."),
    components(schemas(Problem, crate::views::NewTaskForm, crate::views::ProgressView)),
    security((), ("key" = [])),
    modifiers(&Details)
)]
struct Description;

/// Adds what derives cannot say: the authentication, and the options of models.
struct Details;

impl Modify for Details {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};
        use utoipa::openapi::{Ref, RefOr};
        let Some(components) = &mut api.components else { return };
        let scheme =
            HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("lg_ID_SECRET")).build();
        components.add_security_scheme("key", SecurityScheme::Http(scheme));
        let Some(RefOr::T(Schema::Object(form))) = components.schemas.get_mut("NewTaskForm") else { return };
        for option in MODEL_OPTIONS {
            let object = ObjectBuilder::new();
            let object = match option.kind {
                Kind::Integer => object.schema_type(SchemaType::Type(Type::Integer)),
                Kind::Number => object.schema_type(SchemaType::Type(Type::Number)),
                Kind::Boolean => object.schema_type(SchemaType::Type(Type::Boolean)),
                Kind::Text => object.schema_type(SchemaType::Type(Type::String)),
                Kind::Words(words) => object
                    .schema_type(SchemaType::Type(Type::String))
                    .enum_values(Some(words.iter().copied())),
            };
            form.properties.insert(option.name.to_owned(), RefOr::T(Schema::Object(object.build())));
        }
        // Every operation may answer with a problem.
        let problem = utoipa::openapi::ResponseBuilder::new()
            .description("An error, as RFC 9457 describes it; 429 and 503 carry Retry-After")
            .content(
                crate::problem::PROBLEM_JSON,
                utoipa::openapi::ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build(),
            )
            .build();
        components.responses.insert("Problem".to_owned(), RefOr::T(problem));
    }
}

fn described() -> OpenApiRouter<Arc<Api>> {
    let v1 = OpenApiRouter::new()
        .routes(routes!(submit::submit, tasks::list))
        .routes(routes!(tasks::show, tasks::cancel))
        .routes(routes!(result::result))
        .routes(routes!(events::events))
        .routes(routes!(tasks::retry))
        .routes(routes!(tasks::dead_letters))
        .routes(routes!(grid::models))
        .routes(routes!(grid::nodes))
        .routes(routes!(grid::queues))
        .routes(routes!(grid::stats));
    OpenApiRouter::with_openapi(Description::openapi()).nest(BASE, v1)
}

/// The description, as it is served and committed.
pub(crate) fn openapi() -> utoipa::openapi::OpenApi {
    let mut api = described().into_openapi();
    let reference = utoipa::openapi::RefOr::Ref(utoipa::openapi::Ref::from_response_name("Problem"));
    for item in api.paths.paths.values_mut() {
        for operation in [&mut item.get, &mut item.post, &mut item.delete].into_iter().flatten() {
            operation.responses.responses.insert("default".to_owned(), reference.clone());
        }
    }
    api
}

pub(crate) fn router(api: Arc<Api>) -> Router {
    let (routes, _) = described().split_for_parts();
    let description = openapi();
    routes
        .route("/api/openapi.json", axum::routing::get(async move || Json(description.clone())))
        .fallback(async |request: Request| {
            let path: String = request.uri().path().chars().take(80).collect();
            Problem::new(Fault::NotFound, format!("there is no route {path:?}; see /api/openapi.json"))
        })
        .method_not_allowed_fallback(async |request: Request| {
            let method: String = request.method().as_str().chars().take(20).collect();
            Problem::new(
                Fault::MethodNotAllowed,
                format!("this route does not know {method}; see the header Allow"),
            )
        })
        .with_state(api)
        .layer(middleware::map_response(async |response: Response| with_headers(response)))
}

/// Adds headers that keep browsers from guessing the type of a response and other sites from embedding it.
pub(crate) fn with_headers(response: impl IntoResponse) -> Response {
    let mut response = response.into_response();
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONTENT_SECURITY_POLICY, NO_DOCUMENT);
    let policy = HeaderName::from_static("cross-origin-resource-policy");
    headers.insert(policy, HeaderValue::from_static("same-origin"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests;
