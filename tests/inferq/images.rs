//! Images through the whole system, on the tiny CLIP that `tests/golden/vision/make.py` made.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemas::codec::Encoding;
use serde_json::{Value, json};

use crate::support::{Deployment, root};

async fn deployment() -> Deployment {
    let folder = root().join("tests/golden/vision/clip");
    let model = |name: &str, task: &str| {
        format!("[[models]]\nname = \"{name}\"\ntask = \"{task}\"\nsource = {:?}\n", folder.to_str().unwrap())
    };
    Deployment::new(&[model("see", "embed"), model("tell", "classify")].concat()).await
}

async fn answer(deployment: &Deployment, url: &str, body: Value) -> (u64, Value) {
    let id = deployment.submit(&json!({ "url": url, "body": body }), Encoding::MessagePack).await;
    let (_, result) = deployment.result(id.as_str()).await;
    (result["response"]["status_code"].as_u64().unwrap(), result["response"]["body"].clone())
}

#[tokio::test]
async fn images_are_embedded_and_classified() {
    let deployment = deployment().await;
    let _workers = [deployment.worker("see").await, deployment.worker("tell").await];
    let path = root().join("tests/golden/vision");
    let image = json!({ "image": STANDARD.encode(std::fs::read(path.join("image.png")).unwrap()) });
    let golden: Value = serde_json::from_slice(&std::fs::read(path.join("clip/golden.json")).unwrap()).unwrap();
    let near = |ours: &Value, theirs: &Value| {
        let pairs = ours.as_array().unwrap().iter().zip(theirs.as_array().unwrap());
        pairs.map(|(a, b)| (a.as_f64().unwrap() - b.as_f64().unwrap()).abs()).fold(0.0, f64::max)
    };
    let asked = json!({ "model": "see", "input": [image, "a cat"] });
    let (status, body) = answer(&deployment, "/v1/embeddings", asked).await;
    assert_eq!(status, 200, "{body}");
    assert!(near(&body["data"][0]["embedding"], &golden["image"]) < 1e-3, "{body}");
    assert!(near(&body["data"][1]["embedding"], &golden["texts"][0]["embedding"]) < 1e-3, "{body}");
    // An image takes a place for each patch and one more.
    assert_eq!(body["usage"]["prompt_tokens"], 17 + 7);
    let labels: Vec<&Value> = golden["texts"].as_array().unwrap().iter().map(|text| &text["text"]).collect();
    let asked = json!({ "model": "tell", "input": image, "candidate_labels": labels, "hypothesis_template": "{}" });
    let (status, body) = answer(&deployment, "/v1/classify", asked).await;
    assert_eq!(status, 200, "{body}");
    assert!(near(&body["data"][0]["probs"], &golden["probs"]) < 1e-2, "{body}");
    let asked = json!({ "model": "see", "input": { "image": STANDARD.encode("no image") } });
    let (status, body) = answer(&deployment, "/v1/embeddings", asked).await;
    assert_eq!((status, &body["error"]["code"]), (400, &json!("invalid_image")), "{body}");
    folder_of_images(&deployment).await;
}

async fn folder_of_images(deployment: &Deployment) {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in"), folder.path().join("out"));
    std::fs::create_dir(&input).unwrap();
    for name in ["image.png", "image.jpg"] {
        std::fs::copy(root().join("tests/golden/vision").join(name), input.join(name)).unwrap();
    }
    let arguments = ["batch", "run", input.to_str().unwrap(), "-o", output.to_str().unwrap(), "--model", "see"];
    let done = deployment.inferq(&arguments);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    for name in ["image.png.json", "image.jpg.json"] {
        let body: Value = serde_json::from_slice(&std::fs::read(output.join(name)).unwrap()).unwrap();
        assert_eq!(body["data"][0]["embedding"].as_array().unwrap().len(), 24, "{name}");
    }
    std::fs::write(input.join("speech.wav"), "x").unwrap();
    assert_eq!(deployment.inferq(&arguments).status.code(), Some(65), "audio and images are two batches");
}
